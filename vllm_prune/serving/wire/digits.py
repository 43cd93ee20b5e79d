"""Integers among features: as digits of base 256, which all of vLLM's precisions hold exactly (bf16 only these)."""

from __future__ import annotations

import torch

_BASE = 256
DIGITS = 3
"""Of an integer."""
LARGEST_INTEGER = _BASE**DIGITS - 1


def to_digits(values: torch.Tensor) -> torch.Tensor:
    """Integers [n, m] as digits [n, m * 3], least significant first.

    >>> to_digits(torch.tensor([[258]])).tolist(), from_digits(to_digits(torch.tensor([[258, 7]]))).tolist()
    ([[2, 1, 0]], [[258, 7]])
    """
    digits = torch.stack([(values // _BASE**power) % _BASE for power in range(DIGITS)], dim=2)
    return digits.flatten(1)


def from_digits(digits: torch.Tensor) -> torch.Tensor:
    """Inverse of `to_digits`, int64."""
    by_power = digits.long().view(len(digits), -1, DIGITS).unbind(2)
    return torch.stack([digit * _BASE**power for power, digit in enumerate(by_power)]).sum(0)
