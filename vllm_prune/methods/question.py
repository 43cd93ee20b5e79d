"""Chooses tokens by a question before the language model has read either: relevance, and diversity beside it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vllm_prune.methods._finite import FiniteFeatures
from vllm_prune.methods._numerics import invert, to_finite
from vllm_prune.methods.base import VideoTokens
from vllm_prune.methods.dpp import DPP, normalize_relevance
from vllm_prune.methods.relevance import relevance_to_text
from vllm_prune.methods.topk import TopK

Scope = Literal["video", "segment", "frame"]

_LEAST_WEIGHT = 1e-6
"""Of squared relevance, as of a DPP's own: float32 tells what less would add from nothing no more."""
_PRODUCTS_AT_ONCE = 1 << 22


def similarity_to_text(features: Tensor, text: Tensor, over: str) -> Tensor:
    """[N]: cosine similarity of visual tokens [N, C] to a text's tokens [Q, C], over which it is the "mean" or "max".

    The mean is CDPruner's form (NeurIPS 2025, arXiv:2506.10967).

    >>> visual, words = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    >>> [similarity_to_text(visual, words, over).tolist() for over in ("mean", "max")]
    [[1.0, 0.0], [1.0, 0.0]]
    """
    if over == "mean":
        return relevance_to_text(features, text)
    words, length = to_finite(text)
    visual = FiniteFeatures(features)
    directions = (words * invert(length)[:, None]).T.to(visual.dtype)
    rows = max(1, _PRODUCTS_AT_ONCE // len(text))
    found = [(some @ directions).amax(1) for part in visual.blocks() for some in visual.rows(part).split(rows)]
    return torch.cat(found) * invert(visual.norm)


def choose_most_relevant(tokens: VideoTokens, count: int, score: Tensor, scope: Scope) -> Tensor:
    """Indices [count], increasing, of the highest `score` [N] of each `scope`; NaN is the lowest."""
    return TopK(scope=scope).assign(tokens, count, relevance=score).anchor


def choose_diverse(tokens: VideoTokens, count: int, weight: Tensor, scope: Scope) -> Tensor:
    """Indices [count], increasing, by a conditional DPP; `weight` [N] as `weigh_*` returns it."""
    return DPP(scope=scope).assign_weighted(tokens, count, weight).anchor


def weigh_log_relevance(score: Tensor, exponent: float) -> Tensor:
    """Squared relevance [N] in (0, 1] of a relevance exp(exponent * score), at least a thousandth of the highest.

    NaN and -Inf are the lowest.

    >>> weigh_log_relevance(torch.tensor([3.0, -99.0, float("nan")]), 0.5) == torch.tensor([1.0, 1e-6, 1e-6])
    tensor([True, True, True])
    """
    finite = score.isfinite()
    low, high = score.masked_fill(~finite, torch.inf).amin(), score.masked_fill(~finite, -torch.inf).amax()
    low, high = low.clamp(max=torch.finfo(score.dtype).max), high.clamp(min=torch.finfo(score.dtype).min)
    bounded = torch.where(finite, score, torch.where(score == torch.inf, high, low))
    return (2 * exponent * (bounded - bounded.amax())).exp().clamp(min=_LEAST_WEIGHT)


def weigh_similarity(similarity: Tensor, exponent: float, like: Tensor) -> Tensor:
    """Squared relevance [N] in (0, 1] of a similarity [N] stretched to 0..1, to a power, at least a thousandth."""
    return normalize_relevance(similarity, len(similarity), like).pow(exponent).clamp(min=_LEAST_WEIGHT)
