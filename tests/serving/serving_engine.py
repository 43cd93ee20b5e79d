"""vLLM in this process, opened up: which positions its model sees, which blocks a request holds, what it encodes.

As a script it answers all of `serving_cases.CASES` and writes what it saw: `python serving_engine.py MODEL FILE
[OPTIONS]`, where OPTIONS is a JSON object of arguments for `vllm.LLM`. That is how stock vLLM and a second precision
are asked, since one process holds one engine.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
BLOCK_SIZE = 32
MAX_MODEL_LEN = 2048
NUM_BLOCKS = 4096
"""Of the KV cache: more than all requests of a test take. A GiB for each engine has no room in 24 GB."""
OPTIONS: dict[str, Any] = {
    "max_model_len": MAX_MODEL_LEN,
    "max_num_batched_tokens": MAX_MODEL_LEN,
    "gpu_memory_utilization": 0.1,
    "enforce_eager": True,
    "dtype": "float32",
    "limit_mm_per_prompt": {"video": 3, "image": 2},
    "block_size": BLOCK_SIZE,
    "num_gpu_blocks_override": NUM_BLOCKS,
    "max_num_seqs": 32,
    "max_logprobs": -1,
    "disable_log_stats": False,
    "seed": 0,
}


@dataclass
class Answer:
    """What one request got, and what the model saw of it."""

    prompt_token_ids: list[int]
    token_ids: list[int]
    logprobs: np.ndarray
    """[generated, vocabulary]"""
    positions: np.ndarray
    """[3, prompt and all generated tokens but the last]; -1 where a prefix-cache hit left nothing to compute."""
    num_cached_tokens: int
    steps: int
    """In how many steps the model saw something of it."""
    num_computed_rows: int
    """How many rows the model saw of it, in all steps together."""

    @property
    def prompt_len(self) -> int:
        return len(self.prompt_token_ids)


class Engine:
    """An engine in this process. `others` are arguments of `vllm.LLM` beyond OPTIONS."""

    def __init__(self, **others: Any) -> None:
        with patch.dict(os.environ, ENVIRONMENT):  # other tests of this process start servers of their own
            import runner
            from vllm import LLM

            self.llm = LLM(**{**OPTIONS, **runner.OPTIONS, **others})
        self.core = self.llm.llm_engine.engine_core.engine_core
        runner.check(self.core)
        self.scheduler = self.core.scheduler
        self.runner = self.core.model_executor.driver_worker.worker.model_runner
        self.model = self.runner.model
        self.max_step_tokens = self.scheduler.max_num_scheduled_tokens
        self._seen: dict[str, list[tuple[int, np.ndarray]]] = {}
        self._batch: tuple[list[str], list[int], np.ndarray] = [], [], np.zeros(0)
        self._watch_batches()
        self.model.register_forward_pre_hook(self._see, with_kwargs=True)
        self.num_encoded = 0
        """Media that went through `embed_multimodal` since it was last set to 0."""
        self._count_encoded()

    def _watch_batches(self) -> None:
        """Keeps what each step's batch consists of: request ids, their tokens computed before, and their bounds."""
        if hasattr(self.runner, "prepare_inputs"):  # V2: a batch is made anew in every step
            prepare = self.runner.prepare_inputs

            def preparing(*args: Any, **kwargs: Any) -> Any:
                batch = prepare(*args, **kwargs)
                self._batch = list(batch.req_ids), batch.num_computed_tokens_np.tolist(), batch.query_start_loc_np
                return batch

            self.runner.prepare_inputs = preparing

    def _see(self, _model: Any, _args: Any, inputs: Mapping[str, Any]) -> None:
        request_ids, computed, bounds = self._batch
        if hasattr(self.runner, "input_batch"):  # V1: one batch that changes
            batch, bounds = self.runner.input_batch, self.runner.query_start_loc.np
            request_ids, computed = batch.req_ids, batch.num_computed_tokens_cpu
        positions = inputs["positions"].numpy().copy()
        for i, request_id in enumerate(request_ids):
            rows = positions[:, bounds[i] : bounds[i + 1]]
            self._seen.setdefault(client_id(request_id), []).append((int(computed[i]), rows))

    def _count_encoded(self) -> None:
        embed = self.model.embed_multimodal

        def counting(**inputs: Any) -> Any:
            outputs = embed(**inputs)
            self.num_encoded += len(outputs)
            return outputs

        self.model.embed_multimodal = counting

    def forget(self) -> None:
        """Empties the prefix cache and the encoder cache."""
        assert self.llm.reset_prefix_cache()
        self.core.reset_encoder_cache()

    def add(self, prompts: Sequence[Mapping[str, Any]], max_tokens: int = 3) -> list[str]:
        """Queues requests; `finish` runs them."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, logprobs=-1, ignore_eos=True)
        return self.llm.enqueue([dict(prompt) for prompt in prompts], params, use_tqdm=False)

    def step(self) -> list[Any]:
        return self.llm.llm_engine.step()

    def run(
        self, prompts: Sequence[Mapping[str, Any]], *, max_tokens: int = 3, step_tokens: int | None = None
    ) -> list[Answer]:
        """Answers of all prompts, in one batch, in steps of at most `step_tokens` tokens."""
        self.scheduler.max_num_scheduled_tokens = step_tokens or self.max_step_tokens
        self._seen.clear()
        try:
            request_ids = self.add(prompts, max_tokens)
            finished = {}
            while self.llm.llm_engine.has_unfinished_requests():
                finished.update({output.request_id: output for output in self.step() if output.finished})
        finally:
            self.scheduler.max_num_scheduled_tokens = self.max_step_tokens
        return [self._answer(finished[client_id(request_id)]) for request_id in request_ids]

    def _answer(self, output: Any) -> Answer:
        completion = output.outputs[0]
        vocabulary = self.runner.model_config.get_vocab_size()
        logprobs = np.array([[step[token].logprob for token in range(vocabulary)] for step in completion.logprobs])
        seen = self._seen[output.request_id]
        prompt_len = len(output.prompt_token_ids)
        positions = np.full((3, prompt_len + len(completion.token_ids) - 1), -1)
        for first, rows in seen:
            positions[:, first : first + rows.shape[1]] = rows
        return Answer(
            prompt_token_ids=list(output.prompt_token_ids),
            token_ids=list(completion.token_ids),
            logprobs=logprobs,
            positions=positions,
            num_cached_tokens=output.num_cached_tokens or 0,
            steps=len(seen),
            num_computed_rows=sum(rows.shape[1] for _, rows in seen),
        )

    def blocks_held(self) -> dict[str, int]:
        """Number of KV blocks of every running request."""
        manager = self.scheduler.kv_cache_manager
        ids = [request.request_id for request in self.scheduler.running]
        return {client_id(request_id): len(manager.get_block_ids(request_id)[0]) for request_id in ids}

    def num_free_blocks(self) -> int:
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()


def check_positions(found: np.ndarray, expected: np.ndarray, message: str = "") -> None:
    """Rows that were computed are as expected; those of a prefix-cache hit were not computed."""
    assert found.shape == expected.shape, message
    computed = found[0] >= 0
    np.testing.assert_array_equal(found[:, computed], expected[:, computed], err_msg=message)


def client_id(request_id: str) -> str:
    """vLLM appends a random suffix to the ids it gives out, in the core only."""
    return request_id.partition("-")[0]


def prune(prompt: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """`prompt` with its own configuration."""
    return {**prompt, "mm_processor_kwargs": {"prune": config}}


def main() -> None:
    from serving_cases import CASES, SCRIPT_PRUNE

    model, file, *options = sys.argv[1:]
    others = json.loads(options[0]) if options else {}
    wanted = others.pop("cases", list(CASES))
    prompts = [CASES[name] for name in wanted]
    if "hf_overrides" in others:
        prompts = [prune(prompt, SCRIPT_PRUNE) for prompt in prompts]
    engine = Engine(model=model, **others)
    Path(file).write_bytes(pickle.dumps(dict(zip(wanted, engine.run(prompts), strict=True))))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from serving_engine import main as run  # not this `__main__`: the classes that are pickled need their real module

    run()
