"""What stock vLLM answers, in a process of its own: `python stock.py REQUESTS ANSWERS MODEL`.

And what its own pruning would have kept of the videos.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dense_engine import ENVIRONMENT, OPTIONS, options_of

from vllm_prune.budget import TokenCounts
from vllm_prune.config import PruneConfig
from vllm_prune.methods import VideoTokens
from vllm_prune.serving.worker.query_free import merge_and_select

SIDE = 2
"""Patches along the side of a cell."""
RATE = 0.6


@dataclasses.dataclass(frozen=True)
class StockAnswer:
    prompt: list[int]
    token_ids: list[int]
    logprobs: np.ndarray
    """[generated, vocabulary]"""


@dataclasses.dataclass(frozen=True)
class StockMask:
    """What `method` of vLLM keeps of a video."""

    method: str
    features: torch.Tensor
    """[N, columns]"""
    grid_thw: tuple[int, int, int]
    """In patches."""
    kept: torch.Tensor
    """[N]"""


def masks_of_ours(tokens: VideoTokens, method: str, rate: float, count: int, width: int) -> torch.Tensor:
    """[N]: what our `method` keeps of a video's tokens, `count` of them, told to do as vLLM's does.

    Args:
        tokens: Unpruned.
        method: "evs" or "vidcom2".
        rate: What vLLM drops.
        count: What vLLM keeps.
        width: Columns of the features that enter the decoder's first layer.
    """
    params = {"precise": False} if method == "evs" else {"keep_ratio": 1 - rate}
    config = PruneConfig.parse({"method": method, "stage1": None, "target_token_num": count, "params": params})
    total = tokens.num_tokens
    counts = TokenCounts(total=total, encoded=total, stage1=total, entering=count)
    return merge_and_select(tokens, config, counts, width)[1].slot >= 0


def answer_by_stock(
    model: str, cases: Sequence[Any], folder: Path, max_tokens: int = 4, **options: Any
) -> tuple[list[StockAnswer], list[StockMask]]:
    """The answers to all cases in one batch, without what they ask of pruning, and what vLLM's own would keep.

    `options`: of the engine.
    """
    prompts = [{**case.prompt(), "mm_processor_kwargs": {}} for case in cases]
    requests, answers = folder / "requests.pickle", folder / "answers.pickle"
    requests.write_bytes(pickle.dumps((prompts, max_tokens, options)))
    tests = Path(__file__).parents[1]
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(tests), str(tests / "dense")]))
    command = [sys.executable, __file__, str(requests), str(answers), model]
    done = subprocess.run(
        command, env=os.environ | ENVIRONMENT | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answered, masks = pickle.loads(answers.read_bytes())
    return [StockAnswer(*fields) for fields in answered], [StockMask(*fields) for fields in masks]


def _answer(
    prompts: Sequence[Mapping[str, Any]], model: str, max_tokens: int, options: Mapping[str, Any]
) -> tuple[list[Any], list[Any]]:
    from vllm import LLM, SamplingParams

    llm = LLM(model=model, **{**OPTIONS, **options_of(model), **options})
    llm.apply_model(_remember_videos)
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, logprobs=-1, ignore_eos=True)
    outputs = llm.generate([dict(prompt) for prompt in prompts], params, use_tqdm=False)
    found = []
    for output in outputs:
        (completion,) = output.outputs
        logprobs = [[step[token].logprob for token in range(len(step))] for step in completion.logprobs]
        found.append((list(output.prompt_token_ids), list(completion.token_ids), np.array(logprobs)))
    (masks,) = llm.apply_model(_prune_as_vllm)
    return found, masks


def _remember_videos(model: Any) -> None:
    if not hasattr(model, "_process_video_input"):
        return  # a model of which vLLM prunes nothing itself
    process, model.seen = model._process_video_input, []

    def remembering(inputs: Any) -> Any:
        rows = process(inputs)
        model.seen.append((rows, inputs))
        return rows

    model._process_video_input = remembering


def _prune_as_vllm(model: Any) -> list[Any]:
    """Fields of `StockMask` for each method that the model has and each video it has encoded."""
    module, found = sys.modules[type(model).__module__], []
    if not hasattr(model, "_postprocess_video_embeds_evs"):
        return []
    for base in type(model).__mro__:
        if "_postprocess_video_embeds_evs" in vars(base):
            module = sys.modules[base.__module__]
    names = {"evs": "compute_retention_mask", "vidcom2": "vidcom2_compute_retention_mask"}
    for method in model.supported_video_pruning_methods:
        inside = getattr(module, names[method])

        def watching(features: Any, size: Any, *args: Any, inside: Any = inside, method: str = method, **more: Any):
            mask = inside(features, size, *args, **more)
            found.append((method, features, tuple(map(int, size)), mask))
            return mask

        setattr(module, names[method], watching)
        model.video_pruning_method, model.video_pruning_rate = method, RATE
        model.is_multimodal_pruning_enabled = True
        for rows, inputs in model.seen:
            model._postprocess_video_embeds_evs(rows, inputs)
    return found


if __name__ == "__main__":
    requests, answers, model = sys.argv[1:]
    prompts, max_tokens, options = pickle.loads(Path(requests).read_bytes())
    Path(answers).write_bytes(pickle.dumps(_answer(prompts, model, max_tokens, options)))
