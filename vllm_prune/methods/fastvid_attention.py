"""FastVID as published (Shen et al., NeurIPS 2025, arXiv:2503.11187, section 3.3): salient tokens besides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vllm_prune.methods._checks import check_budget, check_range, check_unpruned
from vllm_prune.methods._encoder_scores import encoder_scores
from vllm_prune.methods._finite import FiniteFeatures
from vllm_prune.methods._ragged import sizes
from vllm_prune.methods._share import share_budget
from vllm_prune.methods.base import Assignment, VideoTokens
from vllm_prune.methods.fastvid import FastVID
from vllm_prune.methods.topk import best_in_groups


@dataclass(frozen=True, kw_only=True)
class FastVIDAttention(FastVID):
    """Keep the tokens of every frame that receive most attention in the vision encoder; merge the others as `fastvid`.

    density_ratio: share of the budget for merged slots, 0 < density_ratio <= 1; the rest is for salient tokens.

    Salient tokens are kept as they are; frames share their part of the budget in proportion to their tokens. `fastvid`
    says where it differs from the paper; here, also, frames are compared by the mean of the tokens that are not
    salient.
    """

    density_ratio: float = 0.4
    name: ClassVar[str] = "fastvid_attention"
    no_images: ClassVar[str] = "it merges frames of a segment into one another, and a picture is a single frame"
    relevance: ClassVar[str] = "encoder"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("density_ratio", self.density_ratio, 0, 1, open_low=True)

    def assign(self, tokens: VideoTokens, budget: int, relevance: Tensor | None = None) -> Assignment:
        """Exactly `budget` slots; `relevance` [N], the attention each token receives, is required."""
        check_budget(budget, tokens.num_tokens)
        check_unpruned(tokens.num_tokens, tokens.grid_thw, self.name)
        features = FiniteFeatures(tokens.features)
        norm = features.norm
        score = encoder_scores(relevance, norm, self.name)
        salient = budget - max(1, round(self.density_ratio * budget))
        if not salient or int((norm > 0).sum()) < budget:
            return self._merge(features, tokens.grid_thw[0], budget)
        frame = tokens.grid[:, 0]
        size = sizes(torch.where(norm > 0, frame, -1), tokens.grid_thw[0])
        kept = best_in_groups(score, frame, share_budget(salient, size))
        is_salient = torch.zeros_like(norm, dtype=torch.bool).index_fill(0, kept, True)
        # Zero vectors get no slot and join none.
        merged = self._merge(features.without(is_salient), tokens.grid_thw[0], budget - salient)
        root = torch.where(merged.slot < 0, -1, merged.anchor[merged.slot.clamp(min=0)])
        return Assignment.from_roots(root.index_copy(0, kept, kept), budget)
