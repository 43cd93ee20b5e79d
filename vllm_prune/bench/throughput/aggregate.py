"""Repeats become means, standard errors and ratios."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Run:
    """One load on one server, once."""

    configuration: str
    clients: int
    repeat: int
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over repeats; `standard_error` is None for a single repeat, which says nothing of the spread."""

    mean: float
    standard_error: float | None
    n: int

    def text(self, digits: int) -> str:
        """As in the tables: `12.3 ± 0.4`."""
        if self.standard_error is None:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ± {self.standard_error:.{digits}f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error of the mean.

    >>> estimate([1.0, 2.0, 3.0])
    Estimate(mean=2.0, standard_error=0.5773502691896258, n=3)
    """
    if not values:
        raise ValueError("values=[]: an estimate needs one value or more")
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Estimate(mean=statistics.fmean(values), standard_error=error, n=len(values))


def values_by_repeat(runs: Sequence[Run], configuration: str, clients: int, key: str) -> dict[int, float]:
    """One metric of one configuration, by repeat; repeats that did not measure it are left out."""
    chosen = (run for run in runs if run.configuration == configuration and run.clients == clients)
    return {run.repeat: run.values[key] for run in chosen if key in run.values}


def ratio(runs: Sequence[Run], configuration: str, reference: str, clients: int, key: str) -> Estimate | None:
    """Mean over repeats of `configuration / reference`, both from the same repeat, so that drift cancels out.

    None where the reference is zero or no repeat has both.
    """
    ours = values_by_repeat(runs, configuration, clients, key)
    theirs = values_by_repeat(runs, reference, clients, key)
    ratios = [ours[repeat] / theirs[repeat] for repeat in sorted(ours) if theirs.get(repeat)]
    return estimate(ratios) if ratios else None
