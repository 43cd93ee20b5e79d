"""How many frames of a video fit a number of tokens; no model, no vLLM."""

from __future__ import annotations

from collections.abc import Callable


def most_steps(cells: Callable[[int], int], fits: Callable[[int, int], bool], most: int) -> int:
    """The largest number of temporal steps, up to `most`, with which a video fits; 0 if it does with none.

    Args:
        cells: Tokens of one step of a video with so many steps; does not grow with them (a model may make frames
            smaller the more there are).
        fits: Whether a video of so many steps, and tokens of each, does; if it does, it does with fewer of either.
        most: Steps, 0 or more.

    >>> most_steps(lambda steps: 8, lambda steps, cells: steps * cells <= 100, 64)
    12
    >>> most_steps(lambda steps: 8 if steps <= 10 else 4, lambda steps, cells: steps * cells <= 100, 64)
    25
    """
    while most > 0:
        size = cells(most)
        # Fewer steps have tokens of at least that size, so what does not fit in this size does not fit at all.
        found = _largest(lambda steps, size=size: fits(steps, size), most)  # type: ignore[misc]
        if found == most:
            return most
        most = found
    return 0


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` that fits, by bisection; 0 if none does."""
    below, above = 0, most + 1
    while above - below > 1:
        middle = (below + above) // 2
        if fits(middle):
            below = middle
        else:
            above = middle
    return below
