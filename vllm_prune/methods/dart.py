"""DART, duplication-aware reduction of tokens (Wen et al., EMNLP 2025, arXiv:2502.11494): keep what repeats nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vllm_prune.methods._checks import check_budget, check_integer, check_relevance
from vllm_prune.methods._finite import FiniteFeatures
from vllm_prune.methods._numerics import invert
from vllm_prune.methods.base import Assignment, VideoTokens
from vllm_prune.methods.topk import best

_MOST_PIVOTS = 64
_ABOVE_ANY = 2.0  # cosine: nothing to tell, so last


@dataclass(frozen=True, kw_only=True)
class DART:
    """Keep a few pivots, and for each in turn an equal share of the remaining tokens least similar (cosine) to it.

    pivots: how many, 1 <= pivots <= 64; with a smaller budget the budget itself.

    Pivots are the tokens of highest relevance, without one those with the longest features (L2). The authors' code
    takes 4 pivots of the image by the L1 norm of their keys inside the LLM, and 4 of the text, which is not there yet;
    the paper finds the rule to matter little. Time grows as N * pivots. Tokens with NaN or Inf, and zero vectors, come
    last.
    """

    pivots: int = 8
    name: ClassVar[str] = "dart"
    media: ClassVar[tuple[str, ...]] = ("video", "image")
    relevance: ClassVar[str] = "optional"

    def __post_init__(self) -> None:
        check_integer("pivots", self.pivots, 1, _MOST_PIVOTS)

    def assign(self, tokens: VideoTokens, budget: int, relevance: Tensor | None = None) -> Assignment:
        """Exactly `budget` tokens, each kept as it is; `relevance` [N] chooses the pivots."""
        check_budget(budget, tokens.num_tokens)
        check_relevance(relevance, tokens.num_tokens)
        features = FiniteFeatures(tokens.features)
        norm = features.norm
        score = norm if relevance is None else relevance.masked_fill(relevance.isnan() | (norm == 0), -torch.inf)
        pivot = best(score, min(self.pivots, budget))
        inverse = invert(norm)
        units = features.take(pivot) * inverse[pivot, None]
        similarity = norm.new_empty(len(pivot), len(norm))
        for part in features.blocks():
            similarity[:, part] = units @ features.rows(part).mT
        similarity.mul_(inverse).masked_fill_(norm == 0, _ABOVE_ANY)
        return Assignment.from_kept(_least_similar(similarity, pivot, budget), tokens.num_tokens)


def _least_similar(similarity: Tensor, pivot: Tensor, budget: int) -> Tensor:
    """[budget] int64: the pivots [P], and what each picks in turn by `similarity` [P, N]."""
    share, left = divmod(budget - len(pivot), len(pivot))
    kept = [pivot]
    similarity[:, pivot] = torch.inf
    for turn, row in enumerate(similarity):
        picked = best(-row, share + (turn < left))
        similarity[:, picked] = torch.inf
        kept.append(picked)
    return torch.cat(kept)
