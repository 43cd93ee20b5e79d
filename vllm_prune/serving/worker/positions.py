"""M-RoPE positions of prompts whose media are shorter than their grids.

vLLM asks for a prompt's positions before the vision encoder has run, when which tokens of a video stay may not be
known. What is known then is the grid, and with it the position at which the text after the video goes on: as in the
unpruned sequence. So text and unpruned media get their final positions at once, and the rows of a pruned medium a
negative placeholder that holds the position at which the medium starts; `fill_rows` replaces it, once and for all, when
the rows' offsets arrive with the embeddings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from vllm_prune.layout import MediumLayout

_DELTA = "mrope_position_delta"
"""Attribute of a prompt's position tensor that remembers its delta (see `prompt_delta`)."""
_PRUNED_ROWS = "pruned_rows"
"""Attribute of the same tensor: prompt indices [n] of the rows of pruned media (see `pruned_rows_from`)."""


@dataclass(frozen=True)
class Medium:
    """One image or video of a prompt."""

    offset: int
    """Index of its first placeholder in the prompt."""
    length: int
    """Number of its placeholders, 1 <= length <= N + S."""
    layout: MediumLayout
    """Of the unpruned medium, or of what stays of it where that is numbered anew."""
    renumbered: bool = False
    """Whether the latter: its rows come packed, then, though they are as many as the layout has slots."""


def prompt_positions(prompt_len: int, media: Iterable[Medium]) -> tuple[torch.Tensor, int]:
    """Positions [3, prompt_len] (int64) of a prompt and what to add to the index of every later token.

    Args:
        prompt_len: Number of prompt tokens, placeholders included.
        media: In the order of the prompt.
    """
    parts: list[np.ndarray] = []
    position = index = 0
    for medium in media:
        text_len = medium.offset - index
        parts.append(_text(position, text_len))
        position += text_len
        parts.append(_medium_rows(medium, position))
        position += medium.layout.extent()
        index = medium.offset + medium.length
    parts.append(_text(position, prompt_len - index))
    position += prompt_len - index
    return torch.from_numpy(np.concatenate(parts, axis=1)), position - prompt_len


def _text(start: int, length: int) -> np.ndarray:
    return np.broadcast_to(np.arange(start, start + length, dtype=np.int64), (3, length))


def _medium_rows(medium: Medium, start: int) -> np.ndarray:
    if medium.length == medium.layout.num_slots and not medium.renumbered:
        return medium.layout.offsets().T + start
    return np.full((3, medium.length), -(start + 1), dtype=np.int64)


def unfilled_rows(positions: torch.Tensor) -> torch.Tensor:
    """Prompt indices [n] of the rows in `positions` [3, L] that wait for theirs.

    >>> medium = Medium(offset=1, length=2, layout=MediumLayout((1, 2, 2)))
    >>> unfilled_rows(prompt_positions(4, [medium])[0]).tolist()
    [1, 2]
    """
    return (positions[0] < 0).nonzero().squeeze(1)


def fill_rows(positions: torch.Tensor, index: torch.Tensor, offsets: torch.Tensor) -> None:
    """Gives the rows of a pruned medium their positions, in place; rows that have theirs keep them.

    Args:
        positions: Of the prompt, [3, L].
        index: Prompt indices [n] of the rows.
        offsets: Of the rows, relative to the medium's start, [n, 3].
    """
    rows, steps = positions[:, index], offsets.T.to(positions.dtype)
    positions[:, index] = torch.where(rows < 0, steps - rows - 1, rows)


def remember(positions: torch.Tensor, delta: int) -> tuple[torch.Tensor, int]:
    """Both, with what `pruned_rows_from` and `prompt_delta` want to know left with a prompt's positions [3, L]."""
    setattr(positions, _DELTA, delta)
    setattr(positions, _PRUNED_ROWS, unfilled_rows(positions))
    return positions, delta


def pruned_rows_from(positions: torch.Tensor, known: torch.Tensor, start: int) -> torch.Tensor:
    """Prompt indices of the rows of pruned media at `start` and after it. `known`: `positions` on the CPU.

    The V1 runner hands back the tensor that remembers them, in which rows after `start` may have their positions
    already: it keeps them when a request is preempted. In the V2 runner's copy they are those without a position, since
    it asks for a prompt's positions anew whenever it begins anew.
    """
    rows = getattr(positions, _PRUNED_ROWS, None)
    if rows is None:
        rows = unfilled_rows(known)
    return rows[rows >= start]


def prompt_delta(positions: torch.Tensor, known: torch.Tensor, text_goes_on: int) -> int:
    """What to add to the index of a token after the prompt to get its position.

    The V1 runner hands back the very tensor that `get_mrope_input_positions` returned, for every request in every step;
    the V2 runner hands a copy, in steps with embeddings. For a copy, the largest position tells, unless the prompt ends
    in a pruned video: then `text_goes_on`, the position after the last one of this step.
    """
    delta = getattr(positions, _DELTA, None)
    if delta is not None:
        return int(delta)
    return max(int(known.max()) + 1, text_goes_on) - positions.shape[1]
