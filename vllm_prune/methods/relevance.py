"""How much each visual token has to do with a question, before the language model has looked at either."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_prune.methods._numerics import invert, to_finite

_ROWS_AT_ONCE = 1024


def relevance_to_text(features: Tensor, text: Tensor) -> Tensor:
    """[N]: mean cosine similarity of each visual token to the tokens of a text, higher where it has more to do with it.

    CDPruner conditions on a question by this mean, negated: with CLIP's embeddings the code of its authors takes the
    least similar for the most relevant. Negate it for those.
    features: [N, C]; text: [M, C] embeddings in the same space, M >= 1. Float32 (float64: float64). Zero vectors, and
    tokens with NaN or Inf, have no similarity to anything.

    >>> relevance_to_text(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [3.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    if text.ndim != 2 or features.ndim != 2 or not len(text) or text.shape[1] != features.shape[1]:
        raise ValueError(
            f"text: shape {tuple(text.shape)} for features {tuple(features.shape)}; use [1 or more, channels]"
        )
    words, length = to_finite(text)
    direction = (words * invert(length)[:, None]).mean(0)
    parts = (to_finite(rows) for rows in features.split(_ROWS_AT_ONCE))
    return torch.cat([(finite @ direction.to(finite.dtype)) * invert(norm) for finite, norm in parts])
