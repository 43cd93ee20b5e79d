"""Sharing a budget among groups of tokens, in integers, exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_prune.methods._numerics import rank_descending


def share_budget(budget: int | Tensor, size: Tensor) -> Tensor:
    """How many of `budget` slots each group gets, in proportion to its size.

    size: [G] int64, tokens of each group, 0 for an empty one; 0 <= budget <= sum of sizes, a number or a scalar
    tensor.
    Returns [G] int64 that sums to `budget`, never above the size. Every group with tokens gets at least 1; fractions go
    by largest remainder, ties to the earlier group. A budget too small for that is spread evenly over the groups.

    >>> share_budget(6, torch.tensor([10, 0, 5, 5])).tolist()
    [3, 0, 2, 1]
    >>> share_budget(2, torch.tensor([4, 4, 4, 4])).tolist()
    [1, 0, 1, 0]
    """
    least = (size > 0).long()
    ascending, order = size.sort(stable=True)
    smaller = least[order].cumsum(0) - least[order]  # how many groups are smaller, each content with 1
    rest = ascending.sum() - ascending.cumsum(0) + ascending  # tokens of the others
    at_least_one = (ascending > 0) & ((budget - smaller) * ascending >= rest)
    first = at_least_one.long().argmax()
    large = torch.zeros_like(least).scatter_(0, order, (torch.arange(len(size), device=size.device) >= first).long())
    quota = least * (1 - large) + _apportion(budget - smaller.index_select(0, first.view(1)), size * large)
    return torch.where(least.sum() <= budget, quota, _spread(budget, size))


def _spread(budget: int | Tensor, size: Tensor) -> Tensor:
    """[G] int64 summing to `budget`: every (total / budget)-th token, from the middle, counts for its group."""
    total = size.sum().clamp(min=1)
    upto = (size.cumsum(0) * budget + total // 2) // total
    return upto.diff(prepend=upto.new_zeros(1))


def _apportion(total: Tensor, weight: Tensor) -> Tensor:
    """[G] int64 summing to `total` in proportion to `weight` [G] int64, by largest remainder; never above `weight`."""
    product = total * weight
    whole = weight.sum().clamp(min=1)
    base = product // whole
    left = total - base.sum()
    return base + ((rank_descending(product % whole) < left) & (weight > 0)).long()
