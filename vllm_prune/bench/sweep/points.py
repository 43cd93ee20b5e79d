"""The combinations of parameters that a sweep tries."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_prune.bench.throughput.configurations import VLLM_PRUNE, Configuration
from vllm_prune.bench.throughput.errors import BenchmarkError
from vllm_prune.config import ATTENTION, PruneConfig, PruneConfigError, Stage1Config

UNPRUNED = "unpruned"


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The values of every parameter. None among `keep_ratio` is stage 1 alone, and among `layer` the default layer."""

    tau: Sequence[float]
    cluster_ratio: Sequence[float]
    temporal_segment_ratio: Sequence[float]
    keep_ratio: Sequence[float | None]
    layer: Sequence[int | None]

    def points(self) -> list[Point]:
        """Every combination once: without stage 2 there is no layer to choose."""
        combinations = itertools.product(
            self.tau, self.cluster_ratio, self.temporal_segment_ratio, self.keep_ratio, self.layer
        )
        found = (Point(t, c, s, keep, layer if keep is not None else None) for t, c, s, keep, layer in combinations)
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Point:
    """One combination."""

    tau: float
    cluster_ratio: float
    temporal_segment_ratio: float
    keep_ratio: float | None
    layer: int | None

    @property
    def name(self) -> str:
        """Readable, and different for different points."""
        name = f"tau={self.tau:g} cluster={self.cluster_ratio:g} segment={self.temporal_segment_ratio:g}"
        if self.keep_ratio is None:
            return name
        return f"{name} keep={self.keep_ratio:g}" + ("" if self.layer is None else f" layer={self.layer}")

    @property
    def config(self) -> PruneConfig:
        """Its configuration.

        Raises:
            PruneConfigError: A value is out of its range.
        """
        stage1 = Stage1Config(
            tau=self.tau, cluster_ratio=self.cluster_ratio, temporal_segment_ratio=self.temporal_segment_ratio
        )
        if self.keep_ratio is None:
            return PruneConfig(stage1=stage1)
        layers = None if self.layer is None else (self.layer,)
        return PruneConfig(stage1=stage1, method=ATTENTION, keep_ratio=self.keep_ratio, layers=layers)


def make_configurations(points: Sequence[Point], depth: int) -> list[Configuration]:
    """The unpruned model, then every point, as `bench accuracy` takes them.

    Raises:
        BenchmarkError: A value is out of its range, or a layer beyond a decoder of `depth` layers.
    """
    made = [_configuration(UNPRUNED, PruneConfig())]
    for point in points:
        try:
            config = point.config
            if config.query_aware:
                config.resolved_layers(depth)
        except PruneConfigError as error:
            raise BenchmarkError(f"{point.name}: {error}") from error
        made.append(_configuration(point.name, config))
    return made


def _configuration(name: str, config: PruneConfig) -> Configuration:
    return Configuration(name=name, given=config.to_json(), program=VLLM_PRUNE, config=config)
