"""The highest scores win: the plainest selector, for a score that comes from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vllm_prune.methods._checks import check_budget, check_quota, check_range, check_relevance
from vllm_prune.methods._numerics import rank_descending
from vllm_prune.methods._ragged import batches, sizes
from vllm_prune.methods._segments import token_segments
from vllm_prune.methods._share import share_budget
from vllm_prune.methods.base import Assignment, VideoTokens


@dataclass(frozen=True, kw_only=True)
class TopK:
    """Keep the tokens of highest relevance (attention, similarity to the question, a learned score).

    scope: what shares the budget in proportion to its tokens, and is ranked by itself: the "video", each "segment" or
        each "frame".
    temporal_segment_ratio: segments per frame, 0 < temporal_segment_ratio <= 1, for scope "segment".

    A relevance that is NaN counts as the lowest; ties keep the earlier token.
    """

    scope: Literal["video", "segment", "frame"] = "video"
    temporal_segment_ratio: float = 0.25
    name: ClassVar[str] = "topk"
    media: ClassVar[tuple[str, ...]] = ("video", "image")
    relevance: ClassVar[str] = "required"

    def __post_init__(self) -> None:
        if self.scope not in ("video", "segment", "frame"):
            raise ValueError(f"scope={self.scope!r}; use 'video', 'segment' or 'frame'")
        check_range("temporal_segment_ratio", self.temporal_segment_ratio, 0, 1, open_low=True)

    def assign(self, tokens: VideoTokens, budget: int, relevance: Tensor | None = None) -> Assignment:
        """Exactly `budget` tokens; `relevance` [N] is required."""
        check_budget(budget, tokens.num_tokens)
        check_relevance(relevance, tokens.num_tokens)
        if relevance is None:
            raise ValueError(
                "relevance=None; topk needs a number per token, give attention or similarity to a question"
            )
        score = relevance.masked_fill(relevance.isnan(), -torch.inf)
        if self.scope == "video":
            return Assignment.from_kept(best(score, budget), tokens.num_tokens)
        group = token_segments(tokens, 1.0 if self.scope == "frame" else self.temporal_segment_ratio)
        quota = share_budget(budget, sizes(group, tokens.grid_thw[0]))
        return Assignment.from_kept(best_in_groups(score, group, quota), tokens.num_tokens)


def best(score: Tensor, count: int) -> Tensor:
    """[count] int64: the highest of `score` [N], highest first; ties keep the earlier.

    >>> best(torch.tensor([1.0, 3.0, 3.0]), 2).tolist()
    [1, 2]
    """
    return score.sort(descending=True, stable=True).indices[:count]


def best_in_groups(score: Tensor, group: Tensor, quota: Tensor) -> Tensor:
    """[quota.sum()] int64, increasing: in each group the `quota` [G] highest of `score` [N]; ties keep the earlier.

    ValueError for a quota below 0 or above the group's tokens.

    >>> best_in_groups(torch.tensor([1.0, 3.0, 2.0, 9.0]), torch.tensor([0, 0, 0, 1]), torch.tensor([2, 0])).tolist()
    [1, 2]
    """
    check_quota(quota, group)
    kept = torch.zeros_like(group, dtype=torch.bool)
    for batch in batches(group, len(quota), 1):
        rank = rank_descending(score[batch.index].masked_fill(~batch.valid, -torch.inf))
        kept[batch.index[batch.valid]] = ((rank < quota[batch.group, None]) & batch.valid)[batch.valid]
    return kept.nonzero().squeeze(1)
