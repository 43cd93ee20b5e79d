"""What methods that are told the vision encoder's attention have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_prune.methods._checks import check_relevance
from vllm_prune.methods._finite import FiniteFeatures
from vllm_prune.methods._kernels import nearest_in_batch
from vllm_prune.methods._ragged import batches, sizes
from vllm_prune.methods._share import share_budget
from vllm_prune.methods.base import VideoTokens


def encoder_scores(relevance: Tensor | None, norm: Tensor, method: str) -> Tensor:
    """[N]: `relevance`, -Inf where that is NaN or the token's `norm` [N] is 0; ValueError where there is none."""
    check_relevance(relevance, len(norm))
    if relevance is None:
        raise ValueError(
            f"relevance=None; {method} needs the attention that each token receives in the vision encoder "
            f"(encoder_attention.received_attention)"
        )
    return relevance.masked_fill(relevance.isnan() | (norm == 0), -torch.inf)


def usable_frames(tokens: VideoTokens, norm: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """The frame [N] of each token, -1 where its `norm` [N] is 0, and each frame's share [T] of `budget`."""
    frames = tokens.grid_thw[0]
    frame = torch.where(norm > 0, tokens.grid[:, 0], -1)
    size = sizes(frame, frames)
    return frame, share_budget(size.sum().clamp(max=budget), size)


def join_nearest(features: FiniteFeatures, group: Tensor, num_groups: int, is_target: Tensor) -> Tensor:
    """[N] int64: the most similar (cosine) target in each token's group, the earlier on ties; -1 where there is none.

    features: [N, C]. group: [N] int64, -1 for tokens that take no part. is_target: [N] bool. A target is its own.
    """
    index = torch.arange(len(group), device=group.device)
    has_target = torch.zeros(num_groups, dtype=torch.bool, device=group.device)
    has_target[group[is_target]] = True
    group = torch.where((group >= 0) & has_target[group.clamp(min=0)], group, -1)
    root = torch.full_like(group, -1)
    for batch in batches(group, num_groups, features.channels):
        nearest = nearest_in_batch(features, batch, is_target[batch.index] & batch.valid)
        root[batch.index[batch.valid]] = batch.index.gather(1, nearest)[batch.valid]
    return torch.where(is_target, index, root)


def fill_up(root: Tensor, budget: int) -> Tensor:
    """[N] int64: `root` with the earliest dropped tokens as slots of their own, until there are `budget` slots.

    >>> fill_up(torch.tensor([0, -1, -1, 0]), 2).tolist()
    [0, 1, -1, 0]
    """
    index = torch.arange(len(root), device=root.device)
    missing = budget - (root == index).sum()
    dropped = root < 0
    return torch.where(dropped & (dropped.cumsum(0) <= missing), index, root)
