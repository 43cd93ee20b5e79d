"""What a frozen model is shown, and what its layers make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vllm_prune.layout import MediumLayout, cell_slots


@dataclass(frozen=True)
class Clip:
    """A video as it enters the decoder: N tokens, and S rows of text between its steps (0 where a model has none)."""

    features: Tensor
    """[N, C]."""
    levels: Tensor
    """[N, L * C] what deepstack adds behind the first L layers; L = 0 without it."""
    text: Tensor
    """[S, C] embeddings."""
    layout: MediumLayout

    @property
    def grid(self) -> tuple[int, int, int]:
        """(T, H, W) of the tokens."""
        return self.layout.grid

    @cached_property
    def cells(self) -> Tensor:
        """[N] int64: places of the tokens among all N + S rows."""
        return torch.from_numpy(cell_slots(self.layout)).to(self.features.device)

    def places(self, kept: Tensor) -> Tensor:
        """[K + S] int64, increasing: places of the tokens `kept` ([K] increasing) and of all text."""
        stays = torch.from_numpy(self.layout.is_pinned()).to(kept.device)
        stays[self.cells[kept]] = True
        return stays.nonzero()[:, 0]

    def rows(self) -> Tensor:
        """[N + S, (1 + L) * C] in order; text has nothing for later layers."""
        width = self.features.shape[1] + self.levels.shape[1]
        rows = self.features.new_zeros(self.layout.num_slots, width)
        rows[self.cells] = torch.cat([self.features, self.levels], 1)
        rows[torch.from_numpy(self.layout.is_pinned()).to(rows.device), : self.features.shape[1]] = self.text
        return rows


@dataclass(frozen=True)
class Asked:
    """The prompt of one question about one video."""

    head: list[int]
    """Token ids before the video."""
    tail: list[int]
    """Token ids after it."""
    rows: list[int]
    """Which of `tail` are the question's own, as a selector reads it: no special tokens."""

    @property
    def question(self) -> list[int]:
        """Token ids of the question."""
        return [self.tail[row] for row in self.rows]


@dataclass(frozen=True)
class Seen:
    """What the layers up to the teacher's make of one question."""

    importance: Tensor
    """[N] float32: the attention that the text pays each visual token."""
    head: Tensor
    """[h, C] the layer's output for the rows before the video."""
    medium: Tensor
    """[N + S, C] likewise for the video, with the text between its steps."""
    tail: Tensor
    """[t, C] likewise for the rows after it."""


def timestamped(
    grid: tuple[int, int, int], indices: Sequence[int], fps: float, frames_a_step: int, tokenizer: Any, config: Any
) -> MediumLayout:
    """Qwen3-VL's layout of a video whose frames `indices` were sampled at `fps`: a time before each step.

    As vLLM's `get_video_repl` has it: the middle of the step's first and last frame, to a tenth of a second.
    """
    padded = [*indices, *[indices[-1]] * (-len(indices) % frames_a_step)]
    ends = zip(padded[::frames_a_step], padded[frames_a_step - 1 :: frames_a_step], strict=True)
    times = [
        tuple(tokenizer.encode(f"<{(first / fps + last / fps) / 2:.1f} seconds>", add_special_tokens=False))
        for first, last in ends
    ]
    begin, end = (config.vision_start_token_id,), (config.vision_end_token_id,)
    text = [times[0] + begin, *(end + time + begin for time in times[1:]), end]
    return MediumLayout(grid, tuple(text), rope="per_step")
