"""From a trace to the state of every cell of the video's grid of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np

from vllm_prune.serving.worker.trace import BEFORE_LAYERS
from vllm_prune.show.trace_file import TracedVideo


class State(IntEnum):
    """What became of a cell."""

    KEPT = 0
    """Its token is in the prompt, alone."""
    MERGED = 1
    """A token in the prompt stands for it and for others."""
    DROPPED = 2
    """Dropped before the language model."""
    UNASKED = 3
    """Its token entered the language model, and the question dropped it."""


@dataclass(frozen=True)
class Cells:
    """All arrays [T, H, W], in merged tokens.

    state: uint8, of `State`.
    token: int32, the token (of those that entered the language model) that stands for the cell; -1 without one.
    anchor: bool, whether the cell gives a token in the prompt its position: as many as tokens are kept.
    heat: float32 in 0..1, importance at the first pruning layer, the largest being 1; None without a question.
    segment: [T] int64, temporal segments of stage 1; None without it.
    """

    state: np.ndarray
    token: np.ndarray
    anchor: np.ndarray
    heat: np.ndarray | None
    segment: np.ndarray | None

    @property
    def grid(self) -> tuple[int, int, int]:
        """(T, H, W)."""
        t, h, w = self.state.shape
        return t, h, w

    @property
    def kept_per_step(self) -> np.ndarray:
        """[T] int64, tokens in the prompt with a position in each step of the grid."""
        return self.anchor.sum((1, 2))

    @cached_property
    def group(self) -> np.ndarray:
        """[T, H, W] int64: 1, 2, ... for merged cells, one number a token, in the order in which they come; else 0."""
        merged = self.state == State.MERGED
        tokens, first, inverse = np.unique(self.token[merged], return_index=True, return_inverse=True)
        numbers: np.ndarray = np.zeros(len(tokens), dtype=np.int64)
        numbers[first.argsort()] = np.arange(1, len(tokens) + 1)
        group: np.ndarray = np.zeros(self.state.shape, dtype=np.int64)
        group[merged] = numbers[inverse]
        return group


def map_cells(video: TracedVideo) -> Cells:
    """Where every cell of `video` went."""
    slot, kept = video.slot, video.kept
    is_kept: np.ndarray = np.zeros(len(video.anchor), dtype=bool)
    is_kept[kept] = True
    members = np.bincount(slot[slot >= 0], minlength=len(video.anchor))
    inside = np.maximum(slot, 0)
    state = np.where(members[inside] > 1, State.MERGED, State.KEPT)
    state = np.where(is_kept[inside], state, State.UNASKED)
    state = np.where(slot < 0, State.DROPPED, state).astype(np.uint8)
    anchor: np.ndarray = np.zeros(len(slot), dtype=bool)
    anchor[video.anchor[kept]] = True
    heat = _heat(video, inside)
    return Cells(
        state=state.reshape(video.grid),
        token=slot.astype(np.int32).reshape(video.grid),
        anchor=anchor.reshape(video.grid),
        heat=None if heat is None else heat.reshape(video.grid),
        segment=video.segment,
    )


def _heat(video: TracedVideo, inside: np.ndarray) -> np.ndarray | None:
    """[N] float32. At the first pruning layer every token that entered is still there."""
    if not video.layers:
        return None
    importance = video.importance[video.layers[0]]
    # Similarities or logarithms, of which differences count.
    if video.layers[0] == BEFORE_LAYERS or video.config.needs_selector:
        importance = importance - importance.min()
    share = importance / max(float(importance.max()), np.finfo(np.float32).tiny)
    return np.where(video.slot < 0, 0.0, share[inside]).astype(np.float32)
