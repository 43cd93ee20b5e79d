"""How a medium lies in a prompt: its cells, the rows between them that nobody may drop, and their positions.

A medium is a sequence of slots in the order of the unpruned prompt: a cell each, or a pinned row. Pinned rows are text
that the model's processor puts between the steps of a video (timestamps), or rows that its encoder adds (newlines).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Rope = Literal["grid", "per_step", "sequential"]
"""Positions of a medium: of its grid, of one grid for each step with text between them, or one after the other."""


@dataclass(frozen=True)
class MediumLayout:
    """One medium, unpruned: N cells and S pinned rows.

    >>> layout = MediumLayout((2, 1, 2), text=((7, 8), (9,), (5,)), rope="per_step")
    >>> layout.num_cells, layout.num_pinned, layout.is_pinned().tolist()
    (4, 4, [True, True, False, False, True, False, False, True])
    >>> layout.offsets().T.tolist()[2], layout.extent()
    ([0, 1, 2, 3, 4, 5, 6, 7], 8)
    """

    grid: tuple[int, int, int]
    """(t, h, w) in cells."""
    text: tuple[tuple[int, ...], ...] = ()
    """Token ids before each step and after the last one, t + 1 runs; empty: the cells are contiguous."""
    encoder_pins: tuple[int, ...] = ()
    """Slots of rows that the encoder itself yields beside the cells, increasing; in a layout without text."""
    rope: Rope = "grid"
    t_factor: float = 1.0
    """Temporal positions per step of the grid."""

    def __post_init__(self) -> None:
        if min(self.grid) < 1:
            raise ValueError(f"grid={self.grid}: each extent must be 1 or more")
        if self.text and len(self.text) != self.grid[0] + 1:
            raise ValueError(f"text: {len(self.text)} runs around {self.grid[0]} steps; use {self.grid[0] + 1}")
        if self.text and self.encoder_pins:
            raise ValueError(f"encoder_pins={self.encoder_pins}: cannot be combined with text")
        if self.rope == "grid" and self.num_pinned:
            raise ValueError(f"rope={self.rope!r}: has no positions for {self.num_pinned} pinned rows; use another")

    @property
    def num_cells(self) -> int:
        """N."""
        t, h, w = self.grid
        return t * h * w

    @property
    def num_pinned(self) -> int:
        """S."""
        return sum(map(len, self.text)) + len(self.encoder_pins)

    @property
    def num_slots(self) -> int:
        """N + S: tokens of the unpruned medium in a prompt."""
        return self.num_cells + self.num_pinned

    def is_pinned(self) -> np.ndarray:
        """Which slots are pinned rows, [N + S] bool."""
        if not self.text:
            pinned: np.ndarray = np.zeros(self.num_slots, dtype=bool)
            pinned[list(self.encoder_pins)] = True
            return pinned
        _, h, w = self.grid
        runs: list[np.ndarray] = [np.ones(len(self.text[0]), dtype=bool)]
        for run in self.text[1:]:
            runs += [np.zeros(h * w, dtype=bool), np.ones(len(run), dtype=bool)]
        return np.concatenate(runs)

    def text_ids(self) -> list[int]:
        """Token ids [S] of the pinned text."""
        return [token for run in self.text for token in run]

    def prompt(self, pad_id: int) -> list[int]:
        """Token ids [N + S] of the unpruned medium: `pad_id` for what comes from the encoder."""
        ids = np.full(self.num_slots, pad_id)
        if self.text:
            ids[self.is_pinned()] = self.text_ids()
        return ids.tolist()

    def offsets(self) -> np.ndarray:
        """Positions [N + S, 3] (int64) of all slots, relative to where the medium starts.

        Sources: `get_mrope_input_positions` of vLLM's Qwen2-VL, Qwen2.5-VL (whose rounding this keeps) and Qwen3-VL.

        >>> MediumLayout((2, 1, 2), t_factor=1.5).offsets().tolist()
        [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]]
        """
        if self.rope == "sequential":
            return np.repeat(np.arange(self.num_slots, dtype=np.int64)[:, None], 3, axis=1)
        if self.rope == "per_step":
            return self._offsets_by_step()
        offsets = np.indices(self.grid).reshape(3, -1).T.astype(np.int64)
        if self.t_factor != 1.0:
            offsets[:, 0] = (offsets[:, 0] * self.t_factor).astype(np.int64)
        return offsets

    def _offsets_by_step(self) -> np.ndarray:
        _, h, w = self.grid
        step = np.indices((1, h, w)).reshape(3, -1).T.astype(np.int64)
        parts: list[np.ndarray] = []
        start = 0
        for index, run in enumerate(self.text or ((),) * (self.grid[0] + 1)):
            if index:
                parts.append(step + start)
                start += max(h, w)
            parts.append(np.repeat(np.arange(start, start + len(run), dtype=np.int64)[:, None], 3, axis=1))
            start += len(run)
        return np.concatenate(parts)

    def extent(self) -> int:
        """How far the text after the medium starts behind the medium's own start, whatever of it was pruned."""
        t, h, w = self.grid
        if self.rope == "sequential":
            return self.num_slots
        if self.rope == "per_step":
            return self.num_pinned + t * max(h, w)
        last_t = t - 1 if self.t_factor == 1.0 else int((t - 1) * self.t_factor)
        return max(last_t, h - 1, w - 1) + 1

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return {"grid": self.grid, "text": self.text, "pins": self.encoder_pins, "rope": self.rope, "t": self.t_factor}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> MediumLayout:
        """What `to_dict` wrote."""
        t, h, w = fields["grid"]
        text = tuple(map(tuple, fields["text"]))
        return cls((t, h, w), text, tuple(fields["pins"]), fields["rope"], fields["t"])


def cell_slots(layout: MediumLayout) -> np.ndarray:
    """Slot of each cell, [N]."""
    return (~layout.is_pinned()).nonzero()[0]
