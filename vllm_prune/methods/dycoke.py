"""DyCoke's temporal token merging (Tao et al., CVPR 2025, arXiv:2411.15024, section 3.2): windows of four frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vllm_prune.methods._cell_links import cosine_to, follow, least_like_mean
from vllm_prune.methods._checks import check_budget, check_unpruned
from vllm_prune.methods._finite import FiniteFeatures
from vllm_prune.methods._ragged import sizes
from vllm_prune.methods._share import share_budget
from vllm_prune.methods.base import Assignment, VideoTokens
from vllm_prune.methods.topk import best_in_groups

_WINDOW = 4


@dataclass(frozen=True, kw_only=True)
class DyCoke:
    """In each window of four frames keep the first whole; of the others, the tokens least like the one they repeat.

    The second and the fourth frame are compared (cosine, cell by cell) with the frame before, the third with the first.
    What is not kept is merged into the token that it is compared with. The three frames share what the budget leaves
    of the first ones in proportion to their tokens.

    Where it differs from the paper: the count is given, in place of a rate; a budget below the first frames of all
    windows takes windows of windows, and one below a single frame keeps the cells least like their mean. The paper's
    second stage drops keys while decoding, which paged caches do not allow. Tokens with NaN or Inf and zero vectors are
    dropped first. Ties keep the earlier token. Time grows with N.
    """

    name: ClassVar[str] = "dycoke"
    no_images: ClassVar[str] = "it merges a frame into the one before, and a picture is a single frame"
    needs_every_token: ClassVar[bool] = True

    def assign(self, tokens: VideoTokens, budget: int) -> Assignment:
        """Exactly `budget` slots."""
        check_budget(budget, tokens.num_tokens)
        check_unpruned(tokens.num_tokens, tokens.grid_thw, self.name)
        features = FiniteFeatures(tokens.features)
        usable = features.norm > 0
        frame, cells = tokens.grid[:, 0], tokens.num_tokens // tokens.grid_thw[0]
        size = sizes(torch.where(usable, frame, -1), tokens.grid_thw[0])
        compared, quota = plan_windows(size, budget)
        index = torch.arange(tokens.num_tokens, device=usable.device)
        other = index + (compared - torch.arange(len(compared), device=usable.device))[frame] * cells
        novelty = (-cosine_to(features, other)).masked_fill(~usable, -torch.inf)
        kept = best_in_groups(novelty, frame, quota)
        if len(kept) > budget:
            kept = least_like_mean(tokens.features, kept, budget)
        kept = torch.cat((kept, (~usable).nonzero().squeeze(1)[: budget - len(kept)]))
        parent = other.index_copy(0, kept, kept)
        root = follow(parent)
        is_kept = torch.zeros_like(usable).index_fill(0, kept, True)
        return Assignment.from_roots(torch.where(is_kept[root] & (usable | is_kept), root, -1), budget)


def plan_windows(size: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """Which frame each one is compared with, and how many of its tokens stay.

    size: [T] int64, usable tokens of each frame. Returns [T] int64 twice; a frame that is compared with itself stays
    whole. The quotas sum to `budget`, or to all usable tokens if they are fewer, or, where even the first frame is too
    large, to that frame.

    >>> plan_windows(torch.full((6,), 10), 35)
    (tensor([0, 0, 0, 2, 4, 4]), tensor([10,  4,  4,  4, 10,  3]))
    >>> plan_windows(torch.full((6,), 10), 15)
    (tensor([0, 0, 0, 0, 0, 4]), tensor([10,  0,  0,  0,  5,  0]))
    """
    frame = torch.arange(len(size), device=size.device)
    counts = size.tolist()
    stride = 1
    while sum(counts[:: stride * _WINDOW]) > budget and stride * _WINDOW < len(counts):
        stride *= _WINDOW
    place = frame // stride % _WINDOW
    back = torch.where(place == 0, 0, torch.where(place == 2, 2, 1))
    compared = torch.where(frame % stride == 0, frame - back * stride, frame - frame % stride)
    whole = torch.where(compared == frame, size, 0)
    others = torch.where((frame % stride == 0) & (compared != frame), size, 0)
    left = (budget - whole.sum()).clamp(min=0).minimum(others.sum())
    return compared, whole + share_budget(left, others)
