"""PruneVid's merging in space alone, of cells that were already merged over time: DPC-KNN within each frame."""

from __future__ import annotations

import torch

from vllm_prune.budget import KEEP_SMALL
from vllm_prune.methods._broken import spare_broken
from vllm_prune.methods._dpc_knn import cluster_groups
from vllm_prune.methods._finite import FiniteFeatures
from vllm_prune.methods._ragged import sizes
from vllm_prune.methods._share import share_budget
from vllm_prune.methods.base import Assignment, VideoTokens

_NEIGHBOURS = 7


def merge_frames(tokens: VideoTokens, budget: int, cluster_ratio: float) -> Assignment:
    """Merges each frame's tokens so that exactly `budget` (1..N) are left.

    At the count of `budget.merged_count` every frame keeps its part of it; at any other, frames share in proportion to
    size. Where there is not one for every frame, each frame is merged into one token and these are merged on.
    """
    features = FiniteFeatures(tokens.features)
    frame = tokens.grid[:, 0]
    size = sizes(frame, tokens.grid_thw[0])
    natural = torch.where(size <= KEEP_SMALL, size, (size.double() * cluster_ratio).long().clamp(min=1))
    quota = natural if int(natural.sum()) == budget else share_budget(budget, size)
    one_each = (size > 0).long()
    if int(one_each.sum()) <= budget:
        root = spare_broken(cluster_groups(features, frame, quota, _NEIGHBOURS), features.norm > 0)
        return Assignment.from_roots(root, budget)
    # Not all tokens in one group: distances of a long video's would take gigabytes.
    root = spare_broken(cluster_groups(features, frame, one_each, _NEIGHBOURS), features.norm > 0)
    is_root = root == torch.arange(len(root), device=root.device)
    merged = cluster_groups(features, is_root.long() - 1, one_each.new_full((1,), budget), _NEIGHBOURS)
    return Assignment.from_roots(torch.where(root < 0, -1, merged[root]), budget)
