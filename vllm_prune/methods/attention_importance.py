"""Importance of visual tokens: the attention that the text after the video pays them.

PruneVid (ACL 2025, section 3.3): maximum over the text's positions, then over heads. The softmax runs over every key a
position sees, in chunks with a running maximum (Milakov and Gimelshein 2018), so the attention matrix never exists.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_prune.methods._device import true_places
from vllm_prune.methods._share import share_budget

_CHUNK_SCORES = 1 << 22  # scores held at a time on a CPU: 16 MiB of float32
_GPU_CHUNK_SCORES = 1 << 24  # fewer launches; there are some copies of them, in memory that no profiling has counted


def attention_importance(
    query: Tensor,
    visible: Tensor,
    key: Tensor,
    tokens: Tensor,
    *,
    scale: float,
    text: str = "max",
    heads: str = "max",
) -> Tensor:
    """Importance of some keys for some queries.

    Args:
        query: Of the text's positions, in order, [Q, H, D].
        visible: How many keys each position sees, from the first, [Q] int64.
        key: All keys, [S, G, D]; head h reads group h * G // H.
        tokens: Which keys are asked about, all of them visible to every position, [n] int64.
        scale: Factor of the dot products.
        text: Reduction over positions: "max", "mean", or "last" for the last position's.
        heads: Reduction over heads after that: "max" or "mean".

    Returns:
        [n] float32 in 0..1.
    """
    if text == "last":
        query, visible = query[-1:], visible[-1:]
    grouped = _group_heads(query, key.shape[1], scale)
    scores = _CHUNK_SCORES if query.device.type == "cpu" else _GPU_CHUNK_SCORES
    step = max(1, scores // (grouped.shape[0] * grouped.shape[1]))
    normaliser = _log_sum_exp(grouped, visible, key, step)
    parts = []
    for part in tokens.split(step):
        weights = (_scores(grouped, key[part]) - normaliser).exp()
        by_position = weights.view(-1, len(visible), len(part))
        by_head = by_position.mean(1) if text == "mean" else by_position.amax(1)
        parts.append(by_head.mean(0) if heads == "mean" else by_head.amax(0))
    return torch.cat(parts)


def select_top(importance: Tensor, count: int) -> Tensor:
    """Indices [count] of the largest values, increasing; of equal ones the earlier.

    >>> select_top(torch.tensor([0.1, 0.5, 0.5, 0.9]), 2).tolist()
    [1, 3]
    """
    return torch.sort(importance, descending=True, stable=True).indices[:count].sort().values


def select_top_by_group(importance: Tensor, group: Tensor, count: int) -> Tensor:
    """Like `select_top`, with the budget shared among groups in proportion to their sizes.

    Args:
        importance: [n].
        group: Of each token, [n] int64 of 0 or more.
        count: How many tokens stay in all, 1..n.

    >>> select_top_by_group(torch.tensor([0.9, 0.8, 0.1, 0.2]), torch.tensor([0, 0, 1, 1]), 2).tolist()
    [0, 3]
    """
    sizes = torch.bincount(group)
    quota = share_budget(count, sizes)
    order = torch.sort(importance, descending=True, stable=True).indices
    order = order[torch.sort(group[order], stable=True).indices]
    first = sizes.cumsum(0) - sizes
    rank = torch.arange(len(order), device=order.device) - first[group[order]]
    return order[true_places(rank < quota[group[order]], count)].sort().values


def _group_heads(query: Tensor, groups: int, scale: float) -> Tensor:
    """[Q, H, D] -> float32 [G, Q * H/G, D], scaled; the rows of a group are ordered by head, then by position."""
    positions, heads, dim = query.shape
    by_head = query.float().mul(scale).transpose(0, 1)
    return by_head.reshape(groups, heads // groups * positions, dim)


def _scores(grouped: Tensor, key: Tensor) -> Tensor:
    """Scaled dot products [G, Q * H/G, s]."""
    return grouped @ key.float().permute(1, 2, 0)


def _log_sum_exp(grouped: Tensor, visible: Tensor, key: Tensor, step: int) -> Tensor:
    """Logarithm of the softmax's denominator, [G, Q * H/G, 1]."""
    rows = visible.repeat(grouped.shape[1] // len(visible)).view(1, -1, 1)
    largest = grouped.new_full((*grouped.shape[:2], 1), -torch.inf)
    total = torch.zeros_like(largest)
    for start in range(0, len(key), step):
        scores = _scores(grouped, key[start : start + step])
        columns = torch.arange(start, start + scores.shape[2], device=key.device)
        scores = scores.masked_fill(columns >= rows, -torch.inf)
        higher = torch.maximum(largest, scores.amax(2, keepdim=True))
        total = total * torch.exp(largest - higher) + torch.exp(scores - higher).sum(2, keepdim=True)
        largest = higher
    return largest + total.log()
