"""The shape of a selector: what has to be known to build it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

KINDS = ("match", "joint")
INPUT = "input"
"""The place of a selector that reads what enters layer 0."""

_RANGES = {"width": (1, 65536), "hidden": (2, 2048), "heads": (1, 64), "layers": (1, 8)}
"""Of what a file may ask for: a network of these sizes is built before its weights are read."""


@dataclass(frozen=True, kw_only=True)
class SelectorConfig:
    """Hyperparameters of a selector; ValueError for values out of range.

    >>> SelectorConfig(kind="joint", width=8, hidden=6, heads=4)
    Traceback (most recent call last):
    ...
    ValueError: hidden=6 with heads=4: hidden must be a multiple of 2 x heads
    """

    kind: Literal["match", "joint"]
    """`match`: a token's best cosine to a word of the question, after projections. `joint`: transformer layers over
    tokens and question together."""
    width: int
    """C, channels of a visual token and of an embedding."""
    hidden: int = 96
    """Channels inside the selector."""
    heads: int = 2
    """Of `joint`."""
    layers: int = 2
    """Of `joint`."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r}; use one of {', '.join(KINDS)}")
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{name}={value!r}; use an integer from {least} to {most}")
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden={self.hidden} with heads={self.heads}: hidden must be a multiple of 2 x heads")

    @classmethod
    def from_dict(cls, values: Any) -> SelectorConfig:
        """From what JSON holds; ValueError unless it has exactly the fields of this class."""
        names = [field.name for field in fields(cls)]
        if not isinstance(values, dict) or set(values) != set(names):
            given = sorted(values) if isinstance(values, dict) else values
            raise ValueError(f"fields {given!r}; use exactly {', '.join(names)}")
        return cls(**values)
