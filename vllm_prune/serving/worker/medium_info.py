"""What a worker remembers of the videos whose rows are in its encoder cache, for as long as they are there."""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vllm_prune.budget import TokenCounts
from vllm_prune.config import PruneConfig
from vllm_prune.layout import MediumLayout
from vllm_prune.serving.worker import carrier
from vllm_prune.serving.worker.trace import VideoTrace
from vllm_prune.serving.worker.upload import upload


@dataclass(frozen=True)
class MediumInfo:
    """Facts that do not depend on a video's content."""

    layout: MediumLayout
    counts: TokenCounts
    config_json: str
    trace: VideoTrace | None = None
    """What was done to it, where that is still to be written."""
    failure: str = ""
    """Why there are no tokens of it; its rows are worth nothing then."""

    @property
    def query_aware(self) -> bool:
        """Whether the question still has to choose which tokens stay."""
        return not self.failure and bool(self.counts.layers) and self.counts.kept < self.counts.entering

    @property
    def grid(self) -> tuple[int, int, int]:
        """(t, h, w) in cells."""
        return self.layout.grid

    @functools.cached_property
    def config(self) -> PruneConfig:
        """The video's configuration."""
        return PruneConfig.parse(self.config_json)

    def offsets(self, slots: torch.Tensor) -> torch.Tensor:
        """Positions [n, 3] of `slots` [n], relative to the video's start."""
        return upload(torch.from_numpy(self.layout.offsets()), slots.device)[slots]

    def pinned(self, slots: torch.Tensor) -> torch.Tensor:
        """Which of `slots` [n] are rows that nobody may drop, [n] bool."""
        return upload(torch.from_numpy(self.layout.is_pinned()), slots.device)[slots]

    def places(self, slots: torch.Tensor) -> torch.Tensor:
        """(t, h, w) of the cells at `slots` [n] in the grid, [n, 3]."""
        cells = slots
        if self.layout.num_pinned:
            cells = slots - upload(torch.from_numpy(self.layout.is_pinned().cumsum()), slots.device)[slots]
        _, h, w = self.grid  # `torch.unravel_index` would copy it to the device, and wait
        return torch.stack((cells // (h * w), cells // w % h, cells % w), dim=1)


class MediumTable:
    """A number for every video whose rows exist, so that each row can carry what it has to know as an integer.

    A video is forgotten with the memory of its rows, of which vLLM's encoder cache may hold views only. Its number is
    free again then.
    """

    def __init__(self, capacity: int = carrier.LARGEST_INTEGER + 1) -> None:
        self._capacity = capacity
        self._infos: dict[int, MediumInfo] = {}
        self._next = itertools.cycle(range(capacity))

    def __len__(self) -> int:
        return len(self._infos)

    def __getitem__(self, number: int) -> MediumInfo:
        return self._infos[number]

    def attach(self, info: MediumInfo, make_rows: Callable[[int], torch.Tensor]) -> torch.Tensor:
        """The rows that `make_rows` makes with a number for `info`, which is remembered as long as they are."""
        if len(self._infos) == self._capacity:
            raise RuntimeError(f"the rows of {self._capacity} videos exist at once; a row can tell no more apart")
        number = next(number for number in self._next if number not in self._infos)
        rows = make_rows(number)
        self._infos[number] = info
        weakref.finalize(rows.untyped_storage(), self._infos.pop, number).atexit = False
        return rows
