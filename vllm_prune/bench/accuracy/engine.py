"""Asking without a server: engines in processes of their own, each with its part of the questions.

One engine of ours serves every configuration, since each request brings its own; stock vLLM and each rate of vLLM's EVS
need an engine each, and stock vLLM a process without plugins.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from vllm_prune.bench.accuracy.asking import Answer, Reply, Task, request_config, to_answer
from vllm_prune.bench.accuracy.pictures import IMAGE, VIDEO, Picture, modality_of
from vllm_prune.bench.accuracy.videos import Video
from vllm_prune.bench.throughput.configurations import Configuration
from vllm_prune.bench.throughput.errors import BenchmarkError
from vllm_prune.bench.throughput.processes import log_tail

CPU_CACHE_GIB = "1"
# For the CPU, as in throughput/shared_options.py; eager, as compiling takes longer than most runs.
CPU_ARGUMENTS: dict[str, Any] = {"gpu_memory_utilization": 0.1, "block_size": 32, "enforce_eager": True}
SHARED_ARGUMENTS: dict[str, Any] = {
    "max_num_batched_tokens": 8192,
    "max_num_seqs": 64,
    "seed": 0,
}
END_SECONDS = 20.0


def engine_arguments(on_cpu: bool, more: Mapping[str, Any], modalities: Sequence[str] = (VIDEO,)) -> dict[str, Any]:
    """Arguments of `vllm.LLM`: those of every run, and `more`, which wins. `modalities`: of what is asked about."""
    limits = {modality: int(modality in modalities) for modality in (VIDEO, IMAGE)}
    return {"limit_mm_per_prompt": limits, **SHARED_ARGUMENTS, **(CPU_ARGUMENTS if on_cpu else {}), **more}


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """How to start one engine and ask it."""

    model: str
    variant: bool
    """Our model variant; else vLLM's own."""
    arguments: Mapping[str, Any]
    """Of `vllm.LLM`."""
    max_frames: int
    max_tokens: int


@dataclass(kw_only=True)
class InProcess:
    """A backend that needs no server.

    Args:
        model: The model's folder.
        name: What it is called in results.
        on_cpu: Whether engines run on the CPU.
        processes: Engines side by side; on the CPU they share its cores.
        arguments: Further arguments of `vllm.LLM`.
        max_frames: Frames taken from a video at the most.
        max_tokens: Of an answer.
        log_folder: Where the engines' output goes.
        modalities: Of what is asked about.
    """

    model: Path
    name: str
    on_cpu: bool
    processes: int
    arguments: Mapping[str, Any]
    max_frames: int
    max_tokens: int
    log_folder: Path
    modalities: Sequence[str] = (VIDEO,)
    _started: int = field(default=0, init=False)

    def groups(self, configurations: Sequence[Configuration]) -> list[list[Configuration]]:
        """Ours together; each of vLLM's own alone."""
        ours = [c for c in configurations if c.config is not None]
        return ([ours] if ours else []) + [[c] for c in configurations if c.config is None]

    def describe(self) -> dict[str, Any]:
        return {
            "model": self.name,
            "model_digest": model_digest(self.model),
            "max_frames": self.max_frames,
            "max_tokens": self.max_tokens,
            "engine_arguments": self._arguments(),
        }

    def _arguments(self) -> dict[str, Any]:
        return engine_arguments(self.on_cpu, self.arguments, self.modalities)

    @contextlib.contextmanager
    def open(self, group: Sequence[Configuration]) -> Iterator[EnginePool]:
        first = group[0]
        arguments = self._arguments()
        if first.evs_rate is not None:
            arguments["video_pruning_rate"] = first.evs_rate
        spec = EngineSpec(
            model=str(self.model),
            variant=first.config is not None,
            arguments=arguments,
            max_frames=self.max_frames,
            max_tokens=self.max_tokens,
        )
        engines: list[EngineProcess] = []
        try:
            for index in range(self.processes):
                log = self.log_folder / f"engine-{self._started}-{index}.log"
                engines.append(EngineProcess(spec, {**self._environment(index), **first.environment}, log))
            self._started += 1
            yield EnginePool(engines)
        finally:
            for engine in engines:
                engine.end()

    def _environment(self, index: int) -> dict[str, str]:
        # The engine itself in the process that we start, so that ending that ends all.
        environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
        # vLLM warns once a request that it keeps its number of threads.
        environment["VLLM_LOGGING_LEVEL"] = os.environ.get("VLLM_LOGGING_LEVEL", "ERROR")
        if self.on_cpu:
            environment["VLLM_CPU_KVCACHE_SPACE"] = os.environ.get("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE_GIB)
            if self.processes > 1:
                environment |= _cores_of(index, self.processes)
        return environment


def _cores_of(index: int, processes: int) -> dict[str, str]:
    """Variables that bind an engine to its share of the cores."""
    cores = sorted(os.sched_getaffinity(0))
    mine = cores[index % len(cores) :: processes] or cores
    return {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, mine)), "OMP_NUM_THREADS": str(len(mine))}


def model_digest(folder: Path) -> str:
    """Tells a model's files from other ones of the same name: SHA-256 over names, sizes and the last 64 KiB of each."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".jinja")):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(f"{path.name} {size} ".encode())
            file.seek(max(0, size - (64 << 10)))
            digest.update(file.read())
    return digest.hexdigest()[:16]


class EngineProcess:
    """An engine in a process of its own; a message in, a message back."""

    def __init__(self, spec: EngineSpec, environment: Mapping[str, str], log: Path) -> None:
        """Starts it; the first message from it is empty and says that it is ready."""
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, spec, log))
        with _changed_environment(environment):
            self._process.start()
        theirs.close()

    def send(self, batch: Sequence[Task]) -> None:
        """Hand it a batch."""
        self.connection.send(list(batch))

    def receive(self) -> list[Answer]:
        """Its answers to the batch; empty when it has started.

        Raises:
            BenchmarkError: It failed, or ended.
        """
        try:
            received = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            raise BenchmarkError(f"the engine ended; {self.log}:\n{log_tail(self.log)}") from error
        if isinstance(received, str):
            raise BenchmarkError(f"{received}\nlog: {self.log}")
        return received

    def end(self) -> None:
        """End it, politely at first."""
        self.connection.close()
        self._process.join(END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class EnginePool:
    """Engines that share the work: whoever is done gets the next batch."""

    def __init__(self, engines: Sequence[EngineProcess]) -> None:
        self._engines = {engine.connection: engine for engine in engines}
        self._ready: set[Any] = set()

    def ask(self, batches: Iterable[Sequence[Task]]) -> Iterator[list[Answer]]:
        """Answers, a batch at a time, in the order in which they come."""
        waiting = iter(batches)
        busy = set(self._engines) - self._ready
        for connection in tuple(self._ready):
            self._hand_over(connection, waiting, busy)
        while busy:
            for connection in wait(list(busy)):
                busy.discard(connection)
                answers = self._engines[connection].receive()  # type: ignore[index]
                self._ready.add(connection)
                self._hand_over(connection, waiting, busy)
                if answers:
                    yield answers

    def _hand_over(self, connection: Any, waiting: Iterator[Sequence[Task]], busy: set[Any]) -> None:
        batch = next(waiting, None)
        if batch is not None:
            self._engines[connection].send(batch)
            busy.add(connection)


@contextlib.contextmanager
def _changed_environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(connection: Connection, spec: EngineSpec, log: Path) -> None:
    """The engine's process: answers batches until the other end is closed."""
    # Ctrl-C reaches the whole group; the parent then closes the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with log.open("ab", buffering=0) as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    try:
        engine = Engine(spec)
        connection.send([])
        while True:
            connection.send(engine.answer(connection.recv()))
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:
        import traceback

        traceback.print_exc()
        connection.send(f"{type(error).__name__}: {error}")


class Engine:
    """`vllm.LLM` that answers tasks."""

    def __init__(self, spec: EngineSpec) -> None:
        from vllm import LLM, SamplingParams

        self._spec = spec
        arguments = {"model": spec.model, **spec.arguments}
        if spec.variant:
            from vllm_prune.engine import engine_args

            arguments = engine_args(config="baseline", override="any", **arguments)
        self._llm = LLM(**arguments)
        self._tokenizer = self._llm.get_tokenizer()
        self._sampling = SamplingParams(temperature=0.0, max_tokens=spec.max_tokens)

    def answer(self, tasks: Sequence[Task]) -> list[Answer]:
        """The answers to `tasks`, in their order."""
        # In runs of equal video and configuration, so that the encoder's output and the video's KV blocks are reused.
        media: dict[str, Any] = {}
        prompts = [self._prompt(task, media) for task in tasks]
        outputs = self._llm.generate(prompts, self._sampling, use_tqdm=False)
        replies = [self._reply(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]
        return [to_answer(task, reply) for task, reply in zip(tasks, replies, strict=True)]

    def _prompt(self, task: Task, media: dict[str, Any]) -> dict[str, Any]:
        question = task.question
        modality = modality_of(question.video)
        content = [{"type": modality}, {"type": "text", "text": question.prompt()}]
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        if question.video.key not in media:
            media[question.video.key] = self._load(question.video)
        prompt = {"prompt": text, "multi_modal_data": {modality: [media[question.video.key]]}}
        config = task.configuration.config
        if config is not None:
            prompt["mm_processor_kwargs"] = {"prune": request_config(config, question)}
        return prompt

    def _load(self, medium: Video | Picture) -> Any:
        """As `multi_modal_data` takes it."""
        if isinstance(medium, Picture):
            from PIL import Image

            return Image.fromarray(medium.pixels())
        frames = medium.frames(self._spec.max_frames)
        return frames.pixels, frames.metadata()

    def _reply(self, prompt: dict[str, Any], output: Any) -> Reply:
        (modality,) = prompt["multi_modal_data"]
        return Reply(
            output.outputs[0].text, len(output.prompt_token_ids), self._medium_tokens(prompt, output, modality)
        )

    def _medium_tokens(self, prompt: dict[str, Any], output: Any, modality: str) -> int:
        """Tokens of the video or picture in the prompt, without structure such as timestamps."""
        report = getattr(output, "prune", None)
        if report is not None and report.facts.counts(modality):
            return report.kept_of(modality)
        before, after = self._tokenizer(prompt["prompt"]).input_ids, output.prompt_token_ids
        pad = getattr(self._llm.model_config.hf_config, f"{modality}_token_id", None)
        # Differences, as the question may spell a placeholder as well.
        found = after.count(pad) - (before.count(pad) - 1) if pad in before else 0
        # With a model of any other kind: what vLLM put in for the one placeholder.
        return found if found > 0 else len(after) - (len(before) - 1)
