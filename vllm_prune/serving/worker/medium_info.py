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
from vllm_prune.serving.wire.digits import LARGEST_INTEGER
from vllm_prune.serving.worker.trace import VideoTrace
from vllm_prune.serving.worker.upload import upload
from vllm_prune.spans import TurnFormat


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

    turn: TurnFormat | None = None
    """How questions end, where one has a say."""
    renumbered: MediumLayout | None = None
    """Of the rows that stay, where they have positions of their own."""

    @property
    def query_aware(self) -> bool:
        """Whether the question still has to choose which tokens stay."""
        return not self.failure and self.counts.kept < self.counts.carried

    @property
    def asks_first(self) -> bool:
        """Whether it does so before the first layer."""
        return self.query_aware and self.counts.by_question

    @property
    def chooses_inside(self) -> bool:
        """Whether it does so inside the decoder."""
        return self.query_aware and not self.counts.by_question

    @property
    def grid(self) -> tuple[int, int, int]:
        """(t, h, w) in cells."""
        return self.layout.grid

    @functools.cached_property
    def config(self) -> PruneConfig:
        """The video's configuration."""
        return PruneConfig.parse(self.config_json)

    def offsets(self, slots: torch.Tensor) -> torch.Tensor:
        """Positions [n, 3] of `slots` [n] of the unpruned video, relative to its start."""
        return upload(torch.from_numpy(self.layout.offsets()), slots.device)[slots]

    @property
    def extent(self) -> int:
        """How far the text after the video starts behind its own start."""
        return (self.renumbered or self.layout).extent()

    def row_offsets(self, slots: torch.Tensor, first: int) -> torch.Tensor:
        """Positions [n, 3], relative to the video's start, of rows at `slots` [n], of which `first` is the first."""
        if self.renumbered is None:
            return self.offsets(slots)
        return upload(torch.from_numpy(self.renumbered.offsets()[first : first + len(slots)]), slots.device)

    def pinned(self, slots: torch.Tensor) -> torch.Tensor:
        """Which of `slots` [n] are rows that nobody may drop, [n] bool."""
        return upload(torch.from_numpy(self.layout.is_pinned()), slots.device)[slots]

    def split(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of the rows at `slots` [m] compete, and which nobody may drop: increasing indices [m - S] and [S]."""
        num_tokens = len(slots) - self.counts.pinned
        if num_tokens == len(slots):
            return torch.arange(num_tokens, device=slots.device), slots[:0]
        # Sorted, since to count them would make the host wait.
        order = self.pinned(slots).int().argsort(stable=True)
        return order[:num_tokens], order[num_tokens:]

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

    def __init__(self, capacity: int = LARGEST_INTEGER + 1) -> None:
        self._capacity = capacity
        self._infos: dict[int, MediumInfo] = {}
        self._places: dict[int, Callable[[], torch.Tensor]] = {}
        self._next = itertools.cycle(range(capacity))

    def __len__(self) -> int:
        return len(self._infos)

    def __getitem__(self, number: int) -> MediumInfo:
        return self._infos[number]

    def rows(self, number: int) -> torch.Tensor:
        """All rows of a medium, of which a step may have a part only."""
        return self._places[number]()

    def attach(self, info: MediumInfo, make_rows: Callable[[int], torch.Tensor]) -> torch.Tensor:
        """The rows that `make_rows` makes with a number for `info`, which is remembered as long as they are."""
        if len(self._infos) == self._capacity:
            raise RuntimeError(f"the rows of {self._capacity} videos exist at once; a row can tell no more apart")
        number = next(number for number in self._next if number not in self._infos)
        rows = make_rows(number)
        self._infos[number], self._places[number] = info, _find_again(rows)
        weakref.finalize(rows.untyped_storage(), self._forget, number).atexit = False
        return rows

    def _forget(self, number: int) -> None:
        del self._infos[number], self._places[number]


def _find_again(rows: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Gives `rows` back as long as any view of them exists, without being the reason for it."""
    storage, place = weakref.ref(rows.untyped_storage()), (rows.storage_offset(), rows.size(), rows.stride())
    empty = rows.new_empty(0)

    def find() -> torch.Tensor:
        found = storage()
        if found is None:
            raise RuntimeError("the rows of a video are gone from the encoder cache in the step that uses them")
        return empty.new_empty(0).set_(found, *place)

    return find
