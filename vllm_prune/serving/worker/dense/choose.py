"""Stage 2: which of a video's dense rows stay, from what the language model made of them so far."""

from __future__ import annotations

from typing import Any

import torch
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from vllm_prune.config import PruneConfig
from vllm_prune.methods.attention_importance import attention_importance, select_top, select_top_by_group
from vllm_prune.methods.base import VideoTokens
from vllm_prune.methods.dpp import DPP
from vllm_prune.methods.question import choose_diverse, choose_most_relevant, weigh_log_relevance
from vllm_prune.serving.worker.dense.step import DenseVideo


def measure_importance(
    query: torch.Tensor,
    visible: torch.Tensor,
    key: torch.Tensor,
    tokens: torch.Tensor,
    scale: float,
    config: PruneConfig,
) -> torch.Tensor:
    """Importance [n] of a video's tokens, the same on every tensor-parallel rank.

    Args:
        query: Of the question's positions, this rank's heads, [Q, H, D].
        visible: How many keys each position sees, [Q].
        key: All keys of the request, this rank's heads, [S, G, D].
        tokens: Which keys are the video's, [n].
        scale: Of the dot products.
        config: The video's.
    """
    heads = config.attention_param("heads")
    importance = attention_importance(
        query, visible, key, tokens, scale=scale, text=config.attention_param("text"), heads=heads
    )
    if get_tensor_model_parallel_world_size() == 1:
        return importance
    # vLLM's own collective: a reduction over its device group would make NCCL open a second communicator, in memory
    # that the paged cache has taken.
    by_rank = tensor_model_parallel_all_gather(importance[None], 0)
    return by_rank.mean(0) if heads == "mean" else by_rank.amax(0)


def choose_tokens(
    video: DenseVideo, rows: torch.Tensor, importance: torch.Tensor, hidden: torch.Tensor, count: int
) -> torch.Tensor:
    """Which `count` of the video's n tokens that are left stay: indices [count], increasing.

    Args:
        video: The video.
        rows: Of its rows, those of these tokens, [n].
        importance: Of those, [n]; of a learned selector, log-relevance.
        hidden: Their hidden states after the layer, [n, C].
        count: 1..n.
    """
    config = video.info.config
    with gpu_sync_allowed():  # the selectors wait for sizes that depend on values
        by_dpp, learned = config.attention_param("selector") == "dpp", config.needs_selector
        if by_dpp or learned:
            tokens = VideoTokens(hidden, video.info.places(video.slots[rows]), video.info.grid)
        if learned:
            scope: Any = config.attention_param("scope")
            if by_dpp:
                return choose_diverse(tokens, count, weigh_log_relevance(importance, config.exponent), scope)
            return choose_most_relevant(tokens, count, importance, scope)
        if by_dpp:
            return DPP(scope="frame").assign(tokens, count, relevance=importance).anchor
        if config.attention_param("quota") != "global":
            return select_top_by_group(importance, video.groups[rows], count)
        return select_top(importance, count)
