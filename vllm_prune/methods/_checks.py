"""Checks of what callers give; each raises ValueError naming the field, the value and what to use."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_INTEGER = 2**31 - 1
"""No video has as many tokens, and sums and products of a few such numbers fit int64."""


def check_unpruned(num_tokens: int, grid_thw: tuple[int, int, int], method: str) -> None:
    """Raise ValueError unless every cell of the grid has its token."""
    frames, height, width = grid_thw
    if num_tokens != frames * height * width:
        given = f"{num_tokens} tokens for grid_thw={grid_thw}"
        raise ValueError(f"features: {given}; {method} needs the unpruned video")


def check_relevance(relevance: Tensor | None, num_tokens: int) -> None:
    """Raise ValueError unless `relevance` is None or holds one number per token."""
    if relevance is not None and tuple(relevance.shape) != (num_tokens,):
        raise ValueError(f"relevance: shape {tuple(relevance.shape)}; use [{num_tokens}], one number per token")


def check_quota(quota: Tensor, group: Tensor) -> None:
    """Raise ValueError unless `quota` [G] has a number, from 0 to its tokens, for each of the groups of `group` [N]."""
    if group.ndim != 1 or quota.ndim != 1 or int(group.max()) >= len(quota):
        shapes = f"quota of shape {tuple(quota.shape)} for groups of shape {tuple(group.shape)}"
        raise ValueError(f"{shapes}, up to {int(group.max())}; use one number for each group, from group 0 on")
    size = torch.bincount(group, minlength=len(quota))
    wrong = ((quota < 0) | (quota > size)).nonzero().flatten().tolist()
    if wrong:
        first, have = wrong[0], int(size[wrong[0]])
        raise ValueError(f"quota[{first}]={int(quota[first])} for a group of {have} tokens; use 0..{have}")


def check_budget(budget: int, num_tokens: int) -> None:
    """Raise ValueError unless 1 <= budget <= num_tokens."""
    if not 1 <= budget <= num_tokens:
        raise ValueError(f"budget={budget} for {num_tokens} tokens; use 1..{num_tokens}")


def check_range(
    field: str, value: float, low: float, high: float, *, open_low: bool = False, open_high: bool = False
) -> None:
    """Raise ValueError naming field, value and range unless `value` is a number in it (NaN is in no range)."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    above = number and (low < value if open_low else low <= value)
    below = number and (value < high if open_high else value <= high)
    if not (above and below):
        signs = "<" if open_low else "<=", "<" if open_high else "<="
        raise ValueError(f"{field}={value!r}; use {low} {signs[0]} {field} {signs[1]} {high}")


def check_integer(field: str, value: int, low: int, high: int = MAX_INTEGER) -> None:
    """Raise ValueError unless `value` is an integer from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{field}={value!r}; use an integer of {low} or more")
    if value > high:
        raise ValueError(f"{field}={value!r}; use an integer of {high} or less")


def check_extent(grid_thw: tuple[int, int, int]) -> None:
    """Raise ValueError unless `grid_thw` is three integers of 1 or more."""
    if len(grid_thw) != 3 or min(grid_thw) < 1:
        raise ValueError(f"grid_thw={grid_thw}; use three integers of 1 or more (frames, rows, columns)")
