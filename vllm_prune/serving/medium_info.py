"""What a worker remembers of the videos whose rows are in its encoder cache: few facts, shared by equal videos."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_prune.budget import TokenCounts
from vllm_prune.config import PruneConfig


@dataclass(frozen=True)
class MediumInfo:
    """Facts that do not depend on a video's content."""

    extent: int
    """How far the text after the video starts behind the video's own start, in positions."""
    counts: TokenCounts
    config_json: str
    trace: int = 0
    """Serial number of its `VideoTrace`; 0 without tracing."""

    @property
    def query_aware(self) -> bool:
        """Whether the question still has to choose which tokens stay."""
        return bool(self.counts.layers) and self.counts.kept < self.counts.entering

    @property
    def config(self) -> PruneConfig:
        """The video's configuration."""
        return PruneConfig.parse(self.config_json)


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
