"""PruneVid's merging in space alone, of cells that were already merged over time: DPC-KNN within each frame."""

from __future__ import annotations

import torch

from vllm_prune.budget import KEEP_SMALL
from vllm_prune.methods._dpc_knn import cluster_groups
from vllm_prune.methods._numerics import to_finite
from vllm_prune.methods._ragged import sizes
from vllm_prune.methods._share import share_budget
from vllm_prune.methods.base import Assignment, VideoTokens

_NEIGHBOURS = 7


def merge_frames(tokens: VideoTokens, budget: int, cluster_ratio: float) -> Assignment:
    """Merges each frame's tokens so that exactly `budget` (1..N) are left.

    At the count of `budget.merged_count` every frame keeps its part of it; at any other, frames share in proportion to
    size.
    """
    frame = tokens.grid[:, 0]
    size = sizes(frame, tokens.grid_thw[0])
    natural = torch.where(size <= KEEP_SMALL, size, (size.double() * cluster_ratio).long().clamp(min=1))
    quota = natural if int(natural.sum()) == budget else share_budget(budget, size)
    if bool(((quota == 0) & (size > 0)).any()):
        frame, quota = torch.zeros_like(frame), quota.new_full((1,), budget)
    return Assignment.from_roots(cluster_groups(to_finite(tokens.features)[0], frame, quota, _NEIGHBOURS), budget)
