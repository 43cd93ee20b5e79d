"""Stage 2: from attention weights to the tokens that stay."""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import TEXT


def question_rows(medium: Tensor, video: int) -> Tensor:
    """Indices of the text rows after the last row of a video; `medium` [R] as in `Rows`.

    >>> question_rows(torch.tensor([0, 0, -1, 1, 1, -1, -1]), 0).tolist()
    [2, 5, 6]
    """
    last = int((medium == video).nonzero().max())
    rows = (medium == TEXT).nonzero().squeeze(1)
    rows = rows[rows > last]
    if len(rows) == 0:
        raise ValueError(f"medium {video} is a video without text after it: there is no question to judge it by")
    return rows


def importance(weights: Tensor, text: str, heads: str = "max") -> Tensor:
    """[n]: attention `weights` [heads, questions, n] to a video's n tokens, over question rows, then over heads."""
    if text == "max":
        per_head = weights.amax(dim=1)
    elif text == "mean":
        per_head = weights.mean(dim=1)
    elif text == "last":
        per_head = weights[:, -1]
    else:
        raise ValueError(f'text={text!r}; use "max", "mean" or "last"')
    return per_head.mean(dim=0) if heads == "mean" else per_head.amax(dim=0)


def top_k(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest scores in increasing order; of equal scores the earlier stays.

    >>> top_k(torch.tensor([1.0, 3.0, 1.0, 2.0]), 3).tolist()
    [0, 1, 3]
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    return order[:count].sort().values
