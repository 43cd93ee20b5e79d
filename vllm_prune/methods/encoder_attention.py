"""How much attention each token receives inside a vision encoder: a relevance that no question is needed for.

VisionZip (CVPR 2025, arXiv:2412.04467, section 3.2) takes it where there is no class token: the mean, over queries and
heads, of the softmax's columns. Queries are worked on in pieces, so no attention matrix of a sequence ever exists.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vllm_prune.methods._device import working_set

_WEIGHT_BYTES = 4 << 20  # of the attention weights held at a time; on a GPU 64 MiB, which no profiling counts


def received_attention(query: Tensor, key: Tensor, bounds: Sequence[int], scale: float) -> Tensor:
    """Attention that each position receives, in units of an even share: 1 where it gets as much as any other.

    Args:
        query: Of all sequences, one after the other, [S, H, D].
        key: Likewise, [S, H, D].
        bounds: Where the sequences begin, and the end: increasing from 0 to S. Windows are short sequences; weights are
            1 / n on average in one of n positions, hence the unit.
        scale: Factor of the dot products.

    Returns:
        [S] float32, of mean 1 in every sequence.

    >>> received_attention(torch.zeros(3, 1, 2), torch.ones(3, 1, 2), [0, 1, 3], 1.0).tolist()
    [1.0, 1.0, 1.0]
    """
    heads = query.shape[1]
    received = torch.empty(len(query), dtype=torch.float32, device=query.device)
    for start, length, count in _equal_runs(bounds):
        at_once = max(1, working_set(_WEIGHT_BYTES, query.device) // (4 * heads * length * length))
        for first in range(start, start + count * length, at_once * length):
            stop = min(first + at_once * length, start + count * length)
            keys = _by_head(key[first:stop], length)
            received[first:stop] = _column_sums(_by_head(query[first:stop], length), keys, scale).flatten()
    return received / heads


def _equal_runs(bounds: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(start, length, count) of neighbouring sequences of one length."""
    start = 0
    for length, run in itertools.groupby(stop - first for first, stop in itertools.pairwise(bounds)):
        count = len(list(run))
        if length:
            yield start, length, count
        start += count * length


def _by_head(rows: Tensor, length: int) -> Tensor:
    """[B * n, H, D] -> float32 [B, H, n, D]."""
    return rows.view(-1, length, *rows.shape[1:]).transpose(1, 2).float()


def _column_sums(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """[B, n]: the columns of the softmax of `query` and `key` [B, H, n, D], summed over queries and heads."""
    sequences, heads, length, _ = query.shape
    at_once = max(1, working_set(_WEIGHT_BYTES, query.device) // (4 * sequences * heads * length))
    total = torch.zeros(sequences, length, dtype=torch.float32, device=query.device)
    for piece in query.split(at_once, dim=2):
        total += torch.softmax((piece @ key.mT).mul_(scale), dim=3).sum((1, 2))
    return total
