"""LLaVA-PruMerge+ (Shang et al., ICCV 2025, arXiv:2403.15388, section 3): outliers of attention, and a grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vllm_prune.methods._checks import check_budget, check_range
from vllm_prune.methods._encoder_scores import encoder_scores, fill_up, join_nearest, usable_frames
from vllm_prune.methods._finite import FiniteFeatures
from vllm_prune.methods._ragged import batches
from vllm_prune.methods._spread import spread_in_groups
from vllm_prune.methods.base import Assignment, VideoTokens
from vllm_prune.methods.topk import best_in_groups


@dataclass(frozen=True, kw_only=True)
class PruMerge:
    """In every frame keep the outliers of the encoder's attention, add evenly spaced tokens, merge the rest into them.

    outlier_range: interquartile ranges above the upper quartile from which a `relevance` is an outlier, 0 or more.

    1. Selection (section 3.2): the outliers, the highest first if there are more of them than slots.
    2. Supplement (section 3.4): the other slots go to evenly spaced tokens of those not selected.
    3. Merging (section 3.3): every other token joins the most similar (cosine of features) of these.

    Where it differs from the paper: the count is given; attention is what a token receives from all others, for there
    is no class token; members of a slot weigh alike, where the paper weighs them by attention and merges the nearest
    alone. Frames share the budget in proportion to their tokens. Tokens with NaN or Inf and zero vectors come last.
    Ties keep the earlier token. Time grows as frames * tokens-per-frame * slots-per-frame.
    """

    outlier_range: float = 1.5
    name: ClassVar[str] = "prumerge"
    media: ClassVar[tuple[str, ...]] = ("video", "image")
    relevance: ClassVar[str] = "encoder"

    def __post_init__(self) -> None:
        check_range("outlier_range", self.outlier_range, 0, float("inf"), open_high=True)

    def assign(self, tokens: VideoTokens, budget: int, relevance: Tensor | None = None) -> Assignment:
        """Exactly `budget` slots; `relevance` [N], the attention each token receives, is required."""
        check_budget(budget, tokens.num_tokens)
        features = FiniteFeatures(tokens.features)
        norm = features.norm
        score = encoder_scores(relevance, norm, self.name)
        frames = tokens.grid_thw[0]
        frame, quota = usable_frames(tokens, norm, budget)
        outliers = self._count_outliers(score, frame, frames).minimum(quota)
        selected = best_in_groups(score, tokens.grid[:, 0], outliers)
        is_kept = torch.zeros_like(frame, dtype=torch.bool).index_fill(0, selected, True)
        is_kept |= spread_in_groups(torch.where(is_kept, -1, frame), quota - outliers)
        return Assignment.from_roots(fill_up(join_nearest(features, frame, frames, is_kept), budget), budget)

    def _count_outliers(self, score: Tensor, group: Tensor, num_groups: int) -> Tensor:
        """[G] int64: how many of each group's scores lie `outlier_range` ranges above its upper quartile."""
        count = torch.zeros(num_groups, dtype=torch.int64, device=score.device)
        share = torch.tensor([0.25, 0.75], dtype=score.dtype, device=score.device)
        for batch in batches(group, num_groups, 1):
            values = score[batch.index].masked_fill(~batch.valid, torch.nan)
            low, high = values.nanquantile(share, dim=1)
            limit = high + self.outlier_range * (high - low)
            count[batch.group] = ((values > limit[:, None]) & batch.valid).sum(1)
        return count
