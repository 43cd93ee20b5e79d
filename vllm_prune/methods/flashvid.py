"""FlashVID (Fan et al., ICLR 2026, arXiv:2602.08024): diverse tokens, and trees of tokens that move through time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vllm_prune.methods._checks import check_budget, check_range, check_relevance, check_unpruned
from vllm_prune.methods._kernels import best_links
from vllm_prune.methods.base import Assignment, VideoTokens
from vllm_prune.methods.dpp import DPP


@dataclass(frozen=True, kw_only=True)
class FlashVID:
    """Keep diverse tokens of every frame as they are; link each of the rest to its like in the frame before, and merge.

    diverse_ratio: fraction of the budget that goes to diverse tokens, 0 <= diverse_ratio <= 1.

    1. In each frame diverse tokens are picked one after the other, each as unlike (cosine) the picks before as can be,
       weighed by relevance if there is one.
    2. Every remaining token may link to the most similar remaining token of the frame before, wherever it has moved.
       The strongest links hold, as many as the budget asks; a tree of linked tokens becomes one slot, at its first.

    Where it differs from the paper: the count is given, so links are ranked instead of cut at a threshold; and there is
    no class-token attention. If trees alone are still too many, a token without a like in the frame before links to the
    remaining token before it in row-major order, the weakest of links. Ties keep the earlier token; tokens with NaN or
    Inf count as zero vectors. Time grows as frames * tokens-per-frame^2.
    """

    diverse_ratio: float = 0.7
    name: ClassVar[str] = "flashvid"
    needs_every_token: ClassVar[bool] = True
    relevance: ClassVar[str] = "optional"

    def __post_init__(self) -> None:
        check_range("diverse_ratio", self.diverse_ratio, 0, 1)

    def assign(self, tokens: VideoTokens, budget: int, relevance: Tensor | None = None) -> Assignment:
        """Exactly `budget` slots; with a diverse_ratio of 1 the rest is dropped."""
        check_budget(budget, tokens.num_tokens)
        check_unpruned(tokens.num_tokens, tokens.grid_thw, self.name)
        check_relevance(relevance, tokens.num_tokens)
        diverse = int(self.diverse_ratio * budget)
        index = torch.arange(tokens.num_tokens, device=tokens.features.device)
        is_diverse = torch.zeros_like(index, dtype=torch.bool)
        if diverse:
            is_diverse[DPP(mode="greedy").assign(tokens, diverse, relevance).anchor] = True
        if diverse == budget:
            return Assignment.from_roots(torch.where(is_diverse, index, -1))
        rest = ~is_diverse
        similarity, parent = best_links(tokens.features, rest.view(tokens.grid_thw[0], -1))
        links = tokens.num_tokens - budget
        return Assignment.from_roots(grow_trees(similarity, _link_in_order(parent, rest), links))


def _link_in_order(parent: Tensor, rest: Tensor) -> Tensor:
    """[N] int64: `parent`, and where it is -1 the remaining token before; a token with none stays its own."""
    index = torch.arange(len(parent), device=parent.device)
    last = torch.where(rest, index, -1).cummax(0).values
    before = torch.cat((last.new_full((1,), -1), last[:-1]))
    linked = torch.where(parent >= 0, parent, before)
    return torch.where(rest & (linked >= 0), linked, index)


def grow_trees(similarity: Tensor, parent: Tensor, links: int) -> Tensor:
    """[N] int64: the root of each token when the `links` most similar links hold.

    parent: [N] int64, an earlier token, or the token itself for one that has no link. similarity: [N].

    >>> grow_trees(torch.tensor([0.0, 0.9, 0.5, 0.8]), torch.tensor([0, 0, 1, 1]), 2).tolist()
    [0, 0, 2, 0]
    """
    index = torch.arange(len(parent), device=parent.device)
    strength = similarity.masked_fill(parent == index, -torch.inf)
    strongest = strength.sort(descending=True, stable=True).indices[:links]
    root = index.clone()
    root[strongest] = parent[strongest]
    for _ in range(len(root).bit_length()):
        root = root[root]
    return root
