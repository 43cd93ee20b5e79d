"""What a worker remembers of the videos whose rows are in its encoder cache: few facts, shared by equal videos."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from vllm_prune.budget import TokenCounts
from vllm_prune.config import PruneConfig
from vllm_prune.serving.positions import medium_extent, medium_offsets


@dataclass(frozen=True)
class MediumInfo:
    """Facts that do not depend on a video's content."""

    grid: tuple[int, int, int]
    """(t, h, w) in merged tokens."""
    t_factor: float
    """Temporal positions per step of the grid."""
    counts: TokenCounts
    config_json: str
    trace: int = 0
    """Serial number of its `VideoTrace`; 0 without tracing."""
    failure: str = ""
    """Why there are no tokens of it; its rows are worth nothing then."""

    @property
    def query_aware(self) -> bool:
        """Whether the question still has to choose which tokens stay."""
        return not self.failure and bool(self.counts.layers) and self.counts.kept < self.counts.entering

    @property
    def extent(self) -> int:
        """How far the text after the video starts behind the video's own start, in positions."""
        return medium_extent(self.grid, self.t_factor)

    @functools.cached_property
    def config(self) -> PruneConfig:
        """The video's configuration."""
        return PruneConfig.parse(self.config_json)

    def offsets(self, cells: torch.Tensor) -> torch.Tensor:
        """Positions [n, 3] of `cells` [n], relative to the video's start."""
        return torch.from_numpy(medium_offsets(self.grid, self.t_factor)).to(cells.device)[cells]

    def places(self, cells: torch.Tensor) -> torch.Tensor:
        """(t, h, w) of `cells` [n] in the grid, [n, 3]."""
        return torch.stack(torch.unravel_index(cells, self.grid), dim=1)


class MediumTable:
    """Numbers every distinct `MediumInfo`, so that a row of the encoder cache can carry it as an integer."""

    def __init__(self) -> None:
        self._infos: list[MediumInfo] = []
        self._numbers: dict[MediumInfo, int] = {}

    def number(self, info: MediumInfo) -> int:
        """The number of `info`, a new one if it has none yet."""
        if info not in self._numbers:
            self._numbers[info] = len(self._infos)
            self._infos.append(info)
        return self._numbers[info]

    def __getitem__(self, number: int) -> MediumInfo:
        return self._infos[number]
