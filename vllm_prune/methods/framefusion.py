"""FrameFusion (Fu et al., ICCV 2025, arXiv:2501.01986): merge what repeats from frame to frame, then prune the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vllm_prune.methods._cell_links import cosine_to, follow, least_like_mean, token_before
from vllm_prune.methods._checks import check_budget, check_range, check_relevance, check_unpruned
from vllm_prune.methods._finite import FiniteFeatures
from vllm_prune.methods.base import Assignment, VideoTokens
from vllm_prune.methods.topk import best


@dataclass(frozen=True, kw_only=True)
class FrameFusion:
    """Merge tokens into the token at the same place in the frame before, the most similar (cosine) first.

    threshold: similarity above which a token is merged while there is a relevance to prune by, -1 <= threshold < 1.

    1. Merging (section 4): a run of linked tokens of one cell becomes one slot, at its first, with their mean.
    2. Pruning: what is too much then goes by importance, the least of mean `relevance` over a slot's members first.

    Where it differs from the paper: the count is given, so the strongest links hold, as many as it asks for; merging is
    done once, not layer by layer. Without a relevance (before the language model there is no attention) links below the
    threshold hold as well, and when each cell is one slot, those least like the mean of all are kept. Attention behind
    it, as published, is the preset "framefusion". Tokens with NaN or Inf and zero vectors are dropped first, and links
    skip them. Ties keep the earlier token. Time grows with N.
    """

    threshold: float = 0.6
    name: ClassVar[str] = "framefusion"
    no_images: ClassVar[str] = (
        "it merges a token into the same cell of the frame before, and a picture is a single frame"
    )
    needs_every_token: ClassVar[bool] = True
    relevance: ClassVar[str] = "optional"

    def __post_init__(self) -> None:
        check_range("threshold", self.threshold, -1, 1, open_high=True)

    def assign(self, tokens: VideoTokens, budget: int, relevance: Tensor | None = None) -> Assignment:
        """Exactly `budget` slots; `relevance` [N] is what slots are pruned by."""
        check_budget(budget, tokens.num_tokens)
        check_unpruned(tokens.num_tokens, tokens.grid_thw, self.name)
        check_relevance(relevance, tokens.num_tokens)
        features = FiniteFeatures(tokens.features)
        usable = features.norm > 0
        index = torch.arange(tokens.num_tokens, device=usable.device)
        before = token_before(usable.view(tokens.grid_thw[0], -1)).flatten()
        similarity = cosine_to(features, before)
        linkable = usable & (before >= 0) & (similarity > (-2 if relevance is None else self.threshold))
        num_usable, num_links = torch.stack((usable.sum(), linkable.sum())).tolist()  # one wait for a GPU
        links = min(max(0, num_usable - budget), num_links)
        strongest = best(similarity.masked_fill(~linkable, -torch.inf), links)
        parent = index.clone()
        parent[strongest] = before[strongest]
        root = torch.where(usable, follow(parent), -1)
        kept = self._choose(tokens.features, root, budget, relevance)
        return Assignment.from_roots(torch.where(torch.isin(root, kept), root, -1).index_copy(0, kept, kept), budget)

    def _choose(self, features: Tensor, root: Tensor, budget: int, relevance: Tensor | None) -> Tensor:
        """[budget] int64: the roots that stay; where there are too few, the earliest unusable tokens as well."""
        roots = (root == torch.arange(len(root), device=root.device)).nonzero().squeeze(1)
        if len(roots) <= budget:
            return torch.cat((roots, (root < 0).nonzero().squeeze(1)[: budget - len(roots)]))
        if relevance is None:
            return least_like_mean(features, roots, budget)
        member = root.clamp(min=0)
        score = relevance.double().nan_to_num(-torch.inf).masked_fill(root < 0, 0)
        total = torch.zeros_like(score).index_add_(0, member, score)
        size = torch.zeros_like(score).index_add_(0, member, (root >= 0).double())
        return roots[best((total / size)[roots], budget)]
