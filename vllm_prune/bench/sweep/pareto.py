"""Which points nothing beats."""

from __future__ import annotations

from collections.abc import Sequence


def front(costs: Sequence[float], qualities: Sequence[float]) -> list[bool]:
    """Whether each point is on the Pareto front: no other is as cheap and as good, and better in one of the two.

    >>> front([10, 20, 20, 30], [0.5, 0.9, 0.8, 0.9])
    [True, True, False, False]
    """
    points = list(zip(costs, qualities, strict=True))
    return [not any(_beats(other, point) for other in points) for point in points]


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one != other
