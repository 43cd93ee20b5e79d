"""What goes into the oracle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Medium:
    """One image or video as the Hugging Face processor prepares it."""

    kind: Literal["video", "image"]
    pixel_values: Tensor
    """[patches, patch dimension] float32."""
    grid_thw: tuple[int, int, int]
    """(t, h, w) in patches."""
    second_per_grid_t: float = 1.0
    """Seconds per step of t; of no meaning for images."""
    text: tuple[tuple[int, ...], ...] = ()
    """Token ids before each step of t and after the last, where the model puts timestamps between them; else empty."""


@dataclass(frozen=True)
class Prompt:
    """Token ids with one placeholder for each medium, and the media in the order of their placeholders.

    places: Index of each medium's placeholder in `ids`; None: every placeholder has a medium, there is none as text.
    reply_header: Ids between a question and the reply; where they stand first after a video, its span ends.
    special: Ids that are no text.
    """

    ids: list[int]
    media: list[Medium] = field(default_factory=list)
    places: list[int] | None = None
    reply_header: tuple[int, ...] = ()
    special: frozenset[int] = frozenset()
