"""Tokens linked to earlier tokens of the same cell: what methods for video that stands still have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_prune.methods._device import working_set
from vllm_prune.methods._finite import FiniteFeatures
from vllm_prune.methods._numerics import invert, to_finite
from vllm_prune.methods.topk import best

_COPY_BYTES = 16 << 20  # rows multiplied at a time


def token_before(usable: Tensor) -> Tensor:
    """[T, H*W] int64: the latest usable token of the same cell in an earlier frame, -1 where there is none.

    usable: [T, H*W] bool.

    >>> token_before(torch.tensor([[True, True], [False, True], [True, True]])).tolist()
    [[-1, -1], [0, 1], [0, 3]]
    """
    index = torch.arange(usable.numel(), device=usable.device).view_as(usable)
    latest = torch.where(usable, index, -1).cummax(0).values
    return torch.cat((latest.new_full((1, usable.shape[1]), -1), latest[:-1]))


def cosine_to(features: FiniteFeatures, other: Tensor) -> Tensor:
    """[N] cosine similarity of each token to the token `other` [N] int64; -2 where that is -1.

    features: [N, C]. A zero vector has similarity 0 to everything.
    """
    target, product = other.clamp(min=0), torch.empty_like(features.norm)
    rows = max(1, working_set(_COPY_BYTES, other.device) // (4 * features.channels))
    for start in range(0, len(other), rows):
        part = slice(start, start + rows)
        product[part] = (features.rows(part) * features.take(target[part])).sum(1)
    inverse = invert(features.norm)
    return (product * inverse * inverse[target]).masked_fill_(other < 0, -2)


def follow(parent: Tensor) -> Tensor:
    """[N] int64: where each token ends up. `parent` [N]: an earlier token, or the token itself.

    >>> follow(torch.tensor([0, 0, 2, 1])).tolist()
    [0, 0, 2, 0]
    """
    root = parent
    for _ in range(len(parent).bit_length()):
        root = root[root]
    return root


def least_like_mean(features: Tensor, candidates: Tensor, count: int) -> Tensor:
    """[count] int64 of `candidates` [M] int64: those least like (cosine) the mean direction of all of them.

    features: [N, C]. Zero vectors, and tokens with NaN or Inf, come last; ties keep the earlier.
    """
    rows, norm = to_finite(features[candidates])
    inverse = invert(norm)
    similarity = (rows @ (inverse @ rows)) * inverse
    return candidates[best(-similarity.masked_fill(norm == 0, torch.inf), count)]
