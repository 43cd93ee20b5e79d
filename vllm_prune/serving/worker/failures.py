"""A method that fails on one video fails the requests that use the video, and nothing else.

In the worker, the video's rows become zeros that carry the reason (`MediumInfo.failure`). Every step that uses such a
row reports it, and the engine core ends the request (`core/failures.py`).
"""

from __future__ import annotations

import torch
from vllm.distributed import get_tensor_model_parallel_rank, get_tp_group
from vllm.logger import init_logger
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from vllm_prune.budget import TokenCounts
from vllm_prune.config import ATTENTION, NO_METHOD, QUESTION, PruneConfig
from vllm_prune.methods.base import Assignment, VideoTokens
from vllm_prune.serving.worker.query_free import competing_groups, first_level, merge_and_select

logger = init_logger("vllm.vllm_prune")

_SHOWN = 300  # characters of the method's own message

Selection = tuple[VideoTokens, Assignment, torch.Tensor]
"""What enters the language model, where it comes from, and the group in which each token competes."""


def select_tokens(
    tokens: VideoTokens, config: PruneConfig, counts: TokenCounts, width: int | None, attention: torch.Tensor | None
) -> Selection | str:
    """The tokens that enter the language model, or why there are none; decided on `width` columns (`query_free.py`).

    On this rank: see `agree_on_failures`.
    """
    try:
        with gpu_sync_allowed():  # methods look at what they compute, other people's as often as they like
            entering, assignment = merge_and_select(tokens, config, counts, width, attention)
            return entering, assignment, competing_groups(first_level(tokens, width), config, assignment)
    except Exception as error:
        failure = _describe(error, tokens, config, counts)
        if get_tensor_model_parallel_rank() == 0:
            logger.exception("%s", failure)
        return failure


def _describe(error: Exception, tokens: VideoTokens, config: PruneConfig, counts: TokenCounts) -> str:
    stages = ["stage1"] if config.stage1 is not None else []
    if config.method not in (NO_METHOD, ATTENTION, QUESTION):
        stages.append(f"method {config.method!r}")
    said = f"{type(error).__name__}: {error}"
    if len(said) > _SHOWN:
        said = f"{said[:_SHOWN]}..."
    t, h, w = tokens.grid_thw
    return (
        f"{' and '.join(stages)} failed on a video of {counts.total} tokens ({t} x {h} x {w}), of which "
        f"{counts.carried} should have stayed: {said}; mend the method or choose another one"
    )


def agree_on_failures(failures: list[str]) -> list[str]:
    """Of every video of one call of the encoder, the failure of the first rank that has one; "" where all went well.

    All tensor-parallel ranks call it, once for all videos, and get the same: a rank that went on alone with a video
    would wait for the others for ever.
    """
    group = get_tp_group()
    if group.world_size == 1 or not failures:
        return failures
    failed = torch.tensor([bool(failure) for failure in failures], dtype=torch.int32)
    torch.distributed.all_reduce(failed, torch.distributed.ReduceOp.MAX, group.cpu_group)
    if not failed.any():
        return failures
    by_rank: list[list[str]] = [[] for _ in range(group.world_size)]
    torch.distributed.all_gather_object(by_rank, failures, group.cpu_group)
    return [next(filter(None, said), "") for said in zip(*by_rank, strict=True)]
