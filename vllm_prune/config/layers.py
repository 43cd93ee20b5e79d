"""Which decoder layers a configuration means."""

from __future__ import annotations

from collections.abc import Collection


def next_without_state(index: int, stateful: Collection[int]) -> int:
    """The first layer from `index` on that is not `stateful`."""
    while index in stateful:
        index += 1
    return index


def place_layers(
    layers: tuple[int, ...] | tuple[float, ...], depth: int, first: int = 0, stateful: Collection[int] = ()
) -> tuple[int, ...]:
    """The indices that `layers` mean in a decoder of `depth` layers.

    Shares that fall on the same layer of a small decoder take the next ones, those before `first` take it, and those on
    `stateful` layers the next that is none.

    >>> place_layers((0.25, 0.5, 0.75), 28), place_layers((0.1, 0.2), 5), place_layers((3,), 28)
    ((6, 13, 20), (0, 1), (3,))
    >>> place_layers((0.09, 0.12, 0.5), 28, first=2), place_layers((1,), 28, first=2)
    ((2, 3, 13), (1,))
    >>> place_layers((0.25, 0.5), 24, stateful=[i for i in range(24) if i % 4 < 3])
    (7, 11)
    """
    placed: list[int] = []
    for layer in layers:
        index = layer if isinstance(layer, int) else max(first, round(layer * depth) - 1)
        index = max(index, placed[-1] + 1) if placed else index
        placed.append(index if isinstance(layer, int) else next_without_state(index, stateful))
    return tuple(placed)
