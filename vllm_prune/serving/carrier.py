"""What travels with the kept rows of a video through vLLM's encoder cache: their positions, as extra columns.

The cache holds floating point of the model's precision, and bf16 holds integers only up to 256. So every integer travels as
digits of base 256, which all of vLLM's precisions hold exactly.
"""

from __future__ import annotations

import torch

_BASE = 256
_DIGITS = 3
"""Base-256 digits of an integer: 0 .. 16,777,215."""
NUM_VALUES = 4
"""Integers of a row: t, h and w relative to the medium's start, and the medium's extent."""
NUM_COLUMNS = NUM_VALUES * _DIGITS


def pack(features: torch.Tensor, offsets: torch.Tensor, extent: int) -> torch.Tensor:
    """Appends the columns.

    Args:
        features: Kept tokens [K, C].
        offsets: Their positions [K, 3] relative to the medium's start, integers.
        extent: How far the text after the medium starts behind the medium's start.

    Returns:
        [K, C + NUM_COLUMNS] in the features' precision.
    """
    extents = offsets.new_full((len(offsets), 1), extent)
    values = torch.cat((offsets, extents), dim=1)
    digits = [(values // _BASE**power) % _BASE for power in range(_DIGITS)]
    return torch.cat((features, torch.cat(digits, dim=1).to(features.dtype)), dim=1)


def unpack(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Splits what `pack` made into features [K, C], offsets [K, 3] and extents [K] (int64)."""
    features, columns = rows[:, :-NUM_COLUMNS], rows[:, -NUM_COLUMNS:].long()
    digits = columns.view(len(rows), _DIGITS, NUM_VALUES)
    values = sum(digits[:, power] * _BASE**power for power in range(_DIGITS))
    assert isinstance(values, torch.Tensor)
    return features, values[:, :3], values[:, 3]
