"""A vLLM engine in a process of its own, driven from the tests: what it answers, and what its scheduler did.

    with RemoteEngine(model, "default", enforce_eager=True) as engine:
        answers = engine.call("run", prompts)

`call` runs a method of `DenseEngine` over there. One process holds one engine, so every configuration of vLLM needs
its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
BLOCK_SIZE = 32
DENSE_TOKENS = 1088
"""That the engine shared by most tests has room for before a question chooses; a step has 1024."""
STORM_TOKENS = 12
OPTIONS: dict[str, Any] = {
    "max_model_len": 1024,
    "max_num_batched_tokens": 1024,
    "gpu_memory_utilization": 0.1,
    "enforce_eager": True,
    "dtype": "float32",
    "limit_mm_per_prompt": {"video": 3, "image": 2},
    "block_size": BLOCK_SIZE,
    "max_num_seqs": 16,
    "max_logprobs": -1,
    "enable_prefix_caching": True,
    "seed": 0,
}


def options_of(model: str) -> dict[str, Any]:
    """What engines of the model in the folder `model` need beside `OPTIONS`."""
    import runner

    text = json.loads((Path(model) / "config.json").read_text()).get("text_config", {})
    linear = "linear_attention" in (text.get("layer_types") or ())
    return runner.OPTIONS | (
        {"worker_extension_cls": "float32_deltanet.Worker"} if linear and not runner.ON_GPU else {}
    )


@dataclass
class Step:
    """What the scheduler gave one request in one step."""

    number: int
    start: int
    """Its tokens computed before."""
    count: int


@dataclass
class Answer:
    """What one request got, or why it was refused."""

    prompt: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: np.ndarray | None = None
    """[generated, vocabulary]"""
    num_cached: int = 0
    steps: list[Step] = field(default_factory=list)
    most_blocks: int = 0
    """KV blocks it held after its prompt was computed, before anything was generated."""
    preemptions: int = 0
    chosen: list[dict[str, np.ndarray]] = field(default_factory=list)
    """What the trace says of every video whose tokens the question chose, in the order of computation."""
    error: str = ""


class DenseEngine:
    """An engine in this process."""

    def __init__(self, model: str, config: Any, **options: Any) -> None:
        import runner
        from vllm import LLM

        from vllm_prune import engine_args

        self.trace = Path(tempfile.mkdtemp(prefix="dense-trace-"))
        merged = {"override": "any", **OPTIONS, **options_of(model), **options}
        self.llm = LLM(**engine_args(model, config, trace=str(self.trace), **merged))
        self.engine = self.llm.llm_engine
        self.core = self.engine.engine_core.engine_core
        runner.check(self.core)
        self.scheduler = self.core.scheduler
        self.pool = self.scheduler.kv_cache_manager.block_pool
        self.keyed = _group_of_keys(self.scheduler.kv_cache_config)
        self.max_step_tokens = self.scheduler.max_num_scheduled_tokens
        self.steps: dict[str, list[Step]] = {}
        self.blocks: dict[str, int] = {}
        self.block_ids: dict[str, list[int]] = {}
        self.preempted: dict[str, int] = {}
        self.adapters: dict[str, int] = {}
        self._watch_scheduler()
        self.encoded = 0
        self._count_encoded()

    def _watch_scheduler(self) -> None:
        schedule = self.scheduler.schedule

        def watching(*args: Any, **kwargs: Any) -> Any:
            output = schedule(*args, **kwargs)
            for request_id, count in output.num_scheduled_tokens.items():
                request = self.scheduler.requests[request_id]
                # vLLM has already moved on by what it has just scheduled.
                start = request.num_computed_tokens - count
                own = self.steps.setdefault(_client_id(request_id), [])
                own.append(Step(self.scheduler.current_step, start, count))
                self.preempted[_client_id(request_id)] = request.num_preemptions
                if start + count == request.num_prompt_tokens:
                    groups = self.scheduler.kv_cache_manager.get_block_ids(request_id)
                    self.blocks.setdefault(_client_id(request_id), len(groups[self.keyed]))
                    self.block_ids.setdefault(_client_id(request_id), groups[self.keyed])
            return output

        self.scheduler.schedule = watching

    def _count_encoded(self) -> None:
        worker = getattr(self.core.model_executor, "driver_worker", None)
        if worker is None:
            return  # tensor parallelism: the model lives elsewhere
        model = worker.worker.model_runner.model
        embed = model.embed_multimodal

        def counting(**inputs: Any) -> Any:
            rows = embed(**inputs)
            self.encoded += len(rows)
            return rows

        model.embed_multimodal = counting

    def run(
        self,
        prompts: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | Sequence[int] = 4,
        step_tokens: int | None = None,
        free_blocks: int | None = None,
        logprobs: int = -1,
        adapters: Sequence[str] | None = None,
        dense_rows: int | None = None,
        part_rows: int | None = None,
        dense_tokens: int = 1 << 20,
        preempts: bool = False,
        seed: int | None = None,
    ) -> list[Answer]:
        """Answers of all prompts, queued together; in steps of `step_tokens` tokens, with `free_blocks` KV blocks.

        `adapters`: for each prompt the folder of its LoRA adapter, "" for none. `dense_rows`: that a layer of a dense
        prefix gets at a time. `part_rows`: that a step computes of a dense prefix, so that longer ones stretch over
        several steps, as many at once as `dense_tokens` allows. `preempts`: in the middle of the first. `seed`: of
        what is sampled; None: the likeliest tokens.
        """
        for record in (self.steps, self.blocks, self.block_ids, self.preempted):
            record.clear()
        for file in self.trace.iterdir():
            file.unlink()
        self.scheduler.max_num_scheduled_tokens = step_tokens or self.max_step_tokens
        self.preempts, self.most_bytes, self.seed = preempts, 0, seed
        with self._only(free_blocks), self._dense_rows_at_once(dense_rows), self.long_prefixes(part_rows, dense_tokens):
            answers = self._run(prompts, max_tokens, logprobs, adapters or [""] * len(prompts))
        self.scheduler.max_num_scheduled_tokens = self.max_step_tokens
        return answers

    @contextlib.contextmanager
    def _only(self, free_blocks: int | None):
        free = self.pool.get_num_free_blocks()
        held = self.pool.get_new_blocks(free - free_blocks) if free_blocks is not None else []
        yield
        self.pool.free_blocks(held)

    @contextlib.contextmanager
    def _dense_rows_at_once(self, count: int | None):
        self.parts = 0
        if count is None:
            yield
            return
        from vllm_prune.serving.worker.dense import dense_layers

        prefix = self.core.model_executor.driver_worker.worker.model_runner.model._dense_prefix
        before, make_parts = prefix.rows_at_once, dense_layers.make_parts

        def counting(*args: Any) -> Any:
            parts = make_parts(*args)
            self.parts = max(self.parts, len(parts))
            return parts

        prefix.rows_at_once, dense_layers.make_parts = count, counting
        yield
        prefix.rows_at_once, dense_layers.make_parts = before, make_parts

    @contextlib.contextmanager
    def long_prefixes(self, part_rows: int | None, dense_tokens: int):
        """Dense prefixes of more rows stretch over several steps, as many at once as `dense_tokens` rows allow."""
        from vllm_prune.serving.wire.settings import read_step_limits, write_step_limits

        hf_config = self.core.vllm_config.model_config.hf_config
        limits = read_step_limits(hf_config)
        if part_rows is not None:
            write_step_limits(hf_config, limits._replace(tokens=part_rows, dense_tokens=dense_tokens))
        yield
        write_step_limits(hf_config, limits)

    def abort_under_way(self, prompts: Sequence[Mapping[str, Any]], part_rows: int) -> tuple[int, int]:
        """Aborts all prompts once a dense prefix is under way; the bytes it held, before and after the next step."""
        from vllm import SamplingParams

        with self.long_prefixes(part_rows, 1 << 20):
            names = self.llm.enqueue([dict(prompt) for prompt in prompts], SamplingParams(), use_tqdm=False)
            while not self.bytes_under_way():
                self.engine.step()
            before = self.bytes_under_way()
            self.engine.abort_request(names, internal=True)
            while self.scheduler.has_requests():
                self.core.step_fn()
            return before, self.bytes_under_way()

    def prompt_logprobs(self, prompt: Mapping[str, Any], part_rows: int) -> str:
        """Why a request for log-probabilities of its prompt is refused, as the client's mistake; "" if it is not."""
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError

        with self.long_prefixes(part_rows, 1 << 20):
            try:
                self.llm.enqueue([dict(prompt)], SamplingParams(prompt_logprobs=1, max_tokens=1), use_tqdm=False)
            except VLLMClientError as error:
                return str(error)
            while self.engine.has_unfinished_requests():
                self.engine.step()
        return ""

    def _step(self) -> list[Any]:
        """One step; the first time that a dense prefix is under way after it, all requests lose what is computed."""
        outputs = self.engine.step()
        self.most_bytes = max(self.most_bytes, self.bytes_under_way())
        if self.preempts and self.bytes_under_way():
            self.preempts = False
            assert self.scheduler.reset_prefix_cache(reset_running_requests=True)
        return outputs

    def bytes_under_way(self) -> int:
        """That dense prefixes over several steps hold."""
        worker = getattr(self.core.model_executor, "driver_worker", None)
        prefix = worker and getattr(worker.worker.model_runner.model, "_dense_prefix", None)
        return 0 if prefix is None else prefix.long.num_bytes

    def most_bytes_under_way(self) -> int:
        """In the last run."""
        return self.most_bytes

    def most_parts(self) -> int:
        """Into how many parts any layer's rows were cut in the last run with `dense_rows`."""
        return self.parts

    def _run(
        self, prompts: Sequence[Mapping[str, Any]], max_tokens: Any, logprobs: int, adapters: Sequence[str]
    ) -> list[Answer]:
        from vllm import SamplingParams

        limits = [max_tokens] * len(prompts) if isinstance(max_tokens, int) else max_tokens
        names: list[str | None] = []
        answers = [Answer() for _ in prompts]
        for prompt, limit, adapter, answer in zip(prompts, limits, adapters, answers, strict=True):
            sampling = {"temperature": 0.0} if self.seed is None else {"temperature": 1.0, "seed": self.seed}
            params = SamplingParams(max_tokens=limit, logprobs=logprobs or None, ignore_eos=True, **sampling)
            try:
                lora = self._adapter(adapter)
                queued = self.llm.enqueue([dict(prompt)], params, lora_request=lora, use_tqdm=False)
                names += map(_client_id, queued)
            except Exception as error:
                answer.error = f"{type(error).__name__}: {error}"
                names.append(None)
        finished: dict[str, Any] = {}
        while self.engine.has_unfinished_requests():
            finished.update({_client_id(out.request_id): out for out in self._step() if out.finished})
        while self.scheduler.connector is not None and self.scheduler.has_requests():
            self.engine.step()  # stores their last blocks and gives these back
        for name, answer in zip(names, answers, strict=True):
            if name is not None:
                self._fill(answer, name, finished[name])
        return answers

    def _adapter(self, folder: str) -> Any:
        """vLLM's request for the LoRA adapter in `folder`; None without."""
        from vllm.lora.request import LoRARequest

        if not folder:
            return None
        number = self.adapters.setdefault(folder, len(self.adapters) + 1)
        return LoRARequest(folder, number, folder)

    def _fill(self, answer: Answer, name: str, output: Any) -> None:
        completion = output.outputs[0]
        answer.prompt = list(output.prompt_token_ids)
        answer.token_ids = list(completion.token_ids)
        if completion.finish_reason == "error":
            answer.error = completion.stop_reason
        if completion.logprobs:
            vocabulary = range(len(completion.logprobs[0]))
            answer.logprobs = np.array([[step[token].logprob for token in vocabulary] for step in completion.logprobs])
        answer.num_cached = output.num_cached_tokens or 0
        answer.steps = self.steps.get(name, [])
        answer.most_blocks = self.blocks.get(name, 0)
        answer.preemptions = self.preempted.get(name, 0)
        answer.chosen = [video for prompt, video in self._traced() if prompt == answer.prompt]

    def _traced(self) -> list[tuple[list[int], dict[str, np.ndarray]]]:
        found = []
        for file in sorted(self.trace.glob("*.npz")):
            arrays = np.load(file)
            names = sorted({name.split("/")[0] for name in arrays.files if "/" in name})
            for video in names:
                own = {name.split("/")[1]: arrays[name] for name in arrays.files if name.startswith(f"{video}/")}
                if len(arrays["prompt"]):
                    found.append((arrays["prompt"].tolist(), own))
        return found

    def storm(self, prompts: Sequence[Mapping[str, Any]], seed: int, free_blocks: int) -> list[Answer | None]:
        """Adds prompts a few at a time between steps, and aborts some (None); with `free_blocks` KV blocks."""
        from vllm import SamplingParams

        random = np.random.default_rng(seed)
        names: list[str] = []
        aborted: set[str] = set()
        finished: dict[str, Any] = {}
        self.preempted.clear()
        with self._only(free_blocks):
            while len(names) < len(prompts) or self.engine.has_unfinished_requests():
                for prompt in prompts[len(names) : len(names) + int(random.integers(0, 6))]:
                    params = SamplingParams(max_tokens=STORM_TOKENS, temperature=0.0, logprobs=1, ignore_eos=True)
                    names += self.llm.enqueue([dict(prompt)], params, use_tqdm=False)
                running = [name for name in names if name not in finished and name not in aborted]
                if running and random.random() < 0.15:
                    name = running[int(random.integers(len(running)))]
                    self.engine.abort_request([name], internal=True)
                    aborted.add(name)
                if self.engine.has_unfinished_requests():
                    outputs = self.engine.step()
                    finished.update({_client_id(output.request_id): output for output in outputs if output.finished})
        self.storm_preemptions = sum(self.preempted.values())
        answers: list[Answer | None] = []
        for name in names:
            output = None if name in aborted else finished[_client_id(name)]
            answers.append(output and self._short(output))
        return answers

    def alone(self, prompt: Mapping[str, Any]) -> Answer:
        """The answer of one request with empty caches, as `storm` gives it."""
        from vllm import SamplingParams

        self.forget()
        params = SamplingParams(max_tokens=STORM_TOKENS, temperature=0.0, logprobs=1, ignore_eos=True)
        (output,) = self.llm.generate([dict(prompt)], params, use_tqdm=False)
        return self._short(output)

    def _short(self, output: Any) -> Answer:
        completion = output.outputs[0]
        chosen = zip(completion.logprobs, completion.token_ids, strict=True)
        logprobs = np.array([step[token].logprob for step, token in chosen])
        return Answer(list(output.prompt_token_ids), list(completion.token_ids), logprobs)

    def preemptions(self) -> int:
        """Of the last storm."""
        return self.storm_preemptions

    def is_compiled(self) -> bool:
        from vllm.config import CompilationMode

        return self.engine.vllm_config.compilation_config.mode != CompilationMode.NONE

    def watch_ranks(self) -> None:
        """From now on every rank keeps a digest of the rows it keeps."""
        self.llm.collective_rpc(_watch_rank)

    def rank_digests(self) -> list[tuple[int, str]]:
        """Of every rank, how often it dropped rows and a digest of those it kept."""
        return self.llm.collective_rpc(_rank_digest)

    def on_ranks(self, function: Any) -> list[Any]:
        """What `function(worker)` gives on every rank."""
        return self.llm.collective_rpc(function)

    def forget(self, connector: bool = False) -> None:
        """Empties the prefix cache and the encoder cache; with `connector` what a KV connector holds, too."""
        assert self.llm.reset_prefix_cache(reset_connector=connector)
        self.core.reset_encoder_cache()
        self.encoded = 0

    def keep_blocks(self, count: int) -> None:
        """Takes all but the first `count` blocks of the prompt of the last run's request out of the prefix cache."""
        (own,) = self.block_ids.values()
        self.pool.evict_blocks(set(own[count:]))

    def free_blocks(self) -> int:
        return self.pool.get_num_free_blocks()

    def encoder_cache_size(self) -> int:
        """In embeddings, as vLLM counts."""
        return self.scheduler.encoder_cache_manager.cache_size

    def num_encoded(self) -> int:
        """Media encoded since the engine forgot."""
        return self.encoded

    def close(self) -> None:
        shutil.rmtree(self.trace, ignore_errors=True)
        self.engine.engine_core.shutdown()


def _group_of_keys(config: Any) -> int:
    """Index of the group of layers that have keys and values; a hybrid has others, of states."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    found = [isinstance(group.kv_cache_spec, FullAttentionSpec) for group in config.kv_cache_groups]
    return found.index(True)


def _watch_rank(worker: Any) -> None:
    from vllm_prune.serving.worker.dense.rows import DenseRows

    select = DenseRows.select
    worker.digest, worker.drops = hashlib.sha256(), 0

    def watching(self: DenseRows, kept: Any) -> DenseRows:
        worker.digest.update(kept.cpu().numpy().tobytes())
        worker.drops += 1
        return select(self, kept)

    DenseRows.select = watching  # type: ignore[method-assign]


def _rank_digest(worker: Any) -> tuple[int, str]:
    return worker.drops, worker.digest.hexdigest()


def _client_id(request_id: str) -> str:
    """vLLM appends a random suffix to the ids it gives out, in the core only."""
    return request_id.partition("-")[0]


def _serve(pipe: Any, model: str, config: Any, options: dict[str, Any], kind: type[DenseEngine]) -> None:
    os.environ.update(ENVIRONMENT)
    engine: Any = None
    try:
        engine = kind(model, config, **options)
        pipe.send((True, None))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
        return
    while True:
        method, args, kwargs = pipe.recv()
        try:
            pipe.send((True, getattr(engine, method)(*args, **kwargs)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
        if method == "close":
            return


class RemoteError(AssertionError):
    """What was raised in the engine's process."""


class RemoteEngine:
    """A `DenseEngine` in another process, which starts at once; the first `call` waits until it is there."""

    def __init__(
        self,
        model: str,
        config: Any,
        environment: Mapping[str, str] | None = None,
        kind: type[DenseEngine] = DenseEngine,
        **options: Any,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self.started_by = os.environ.get("PYTEST_CURRENT_TEST", "")
        """The test that was running."""
        before = dict(os.environ)
        os.environ.update({**ENVIRONMENT, **(environment or {})})
        self._process = context.Process(target=_serve, args=(other, model, config, options, kind))
        self._process.start()
        os.environ.clear()
        os.environ.update(before)
        other.close()
        self._ready = False
        _running.add(self)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The result of a method of the engine over there."""
        self._wait()
        self._pipe.send((method, args, kwargs))
        return self._receive()

    def run(self, prompts: Sequence[Mapping[str, Any]], **options: Any) -> list[Answer]:
        """See `DenseEngine.run`."""
        return self.call("run", prompts, **options)

    def _wait(self) -> None:
        if not self._ready:
            self._receive()
            self._ready = True

    def _receive(self) -> Any:
        try:
            fine, value = self._pipe.recv()
        except EOFError:
            self._process.join(10)
            raise RemoteError(f"the engine's process is gone, exit code {self._process.exitcode}") from None
        if not fine:
            raise RemoteError(value)
        return value

    def close(self) -> None:
        if self not in _running:
            return
        _running.remove(self)
        with contextlib.suppress(RemoteError, OSError):
            self.call("close")
        self._process.join(20)
        self._process.kill()

    def __enter__(self) -> RemoteEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def forgetful(engine: RemoteEngine) -> Iterator[RemoteEngine]:
    """An engine with empty caches; all its blocks must be free again afterwards."""
    engine.call("forget")
    free = engine.call("free_blocks")
    yield engine
    assert engine.call("free_blocks") == free


_running: set[RemoteEngine] = set()


def close_engines(folder: str) -> None:
    """Ends those that tests of `folder` started."""
    for engine in [engine for engine in _running if engine.started_by.startswith(folder)]:
        engine.close()
