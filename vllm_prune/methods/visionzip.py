"""VisionZip (Yang et al., CVPR 2025, arXiv:2412.04467, section 3): dominant tokens, and contextual ones besides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vllm_prune.methods._checks import check_budget, check_range
from vllm_prune.methods._encoder_scores import encoder_scores, fill_up, join_nearest, usable_frames
from vllm_prune.methods._finite import FiniteFeatures
from vllm_prune.methods._spread import spread_in_groups
from vllm_prune.methods.base import Assignment, VideoTokens
from vllm_prune.methods.topk import best_in_groups


@dataclass(frozen=True, kw_only=True)
class VisionZip:
    """In every frame keep the tokens that receive most attention in the vision encoder; merge the others.

    contextual_ratio: share of a frame's slots that are contextual, 0 <= contextual_ratio < 1; published: 10 of 64.

    1. Dominant tokens (section 3.2): those of highest `relevance`, the attention that each receives from all others.
    2. Contextual tokens (section 3.3): of the remaining ones, evenly spaced targets; every other joins the most similar
       of them, and a slot is the mean of its members.

    Where it differs from the paper: similarity is the cosine of features, not the product of keys; frames share the
    budget in proportion to their tokens. Tokens with NaN or Inf and zero vectors come last. Ties keep the earlier
    token. Time grows as frames * tokens-per-frame * contextual tokens.
    """

    contextual_ratio: float = 10 / 64
    name: ClassVar[str] = "visionzip"
    media: ClassVar[tuple[str, ...]] = ("video", "image")
    relevance: ClassVar[str] = "encoder"

    def __post_init__(self) -> None:
        check_range("contextual_ratio", self.contextual_ratio, 0, 1, open_high=True)

    def assign(self, tokens: VideoTokens, budget: int, relevance: Tensor | None = None) -> Assignment:
        """Exactly `budget` slots; `relevance` [N], the attention each token receives, is required."""
        check_budget(budget, tokens.num_tokens)
        features = FiniteFeatures(tokens.features)
        norm = features.norm
        score = encoder_scores(relevance, norm, self.name)
        frames = tokens.grid_thw[0]
        frame, quota = usable_frames(tokens, norm, budget)
        contextual = (quota * self.contextual_ratio).round().long()
        dominant = best_in_groups(score, tokens.grid[:, 0], quota - contextual)
        is_dominant = torch.zeros_like(frame, dtype=torch.bool).index_fill(0, dominant, True)
        rest = torch.where(is_dominant, -1, frame)
        root = join_nearest(features, rest, frames, spread_in_groups(rest, contextual))
        root[dominant] = dominant
        return Assignment.from_roots(fill_up(root, budget), budget)
