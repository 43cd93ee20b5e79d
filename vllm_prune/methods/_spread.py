"""Evenly spaced members of groups."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_prune.methods._ragged import sizes


def spread_in_groups(group: Tensor, quota: Tensor) -> Tensor:
    """[N] bool: of each group's n members, in their order, the `quota` [G] at places floor(i n / quota).

    group: [N] int64, -1 for members of none. quota: 0 to the group's size.

    >>> spread_in_groups(torch.tensor([0, 0, -1, 0, 0, 1, 1]), torch.tensor([2, 0])).tolist()
    [True, False, False, True, False, False, False]
    """
    order = group.argsort(stable=True)
    size = sizes(group, len(quota))
    start = size.cumsum(0) - size + (group < 0).sum()
    of = group[order].clamp(min=0)
    place = torch.arange(len(group), device=group.device) - start[of]
    # Place p is floor(i n / q) for some i exactly where the count of such places up to it grows.
    upto = -(-(place + 1) * quota[of] // size[of].clamp(min=1))
    before = -(-place * quota[of] // size[of].clamp(min=1))
    chosen = torch.zeros_like(group, dtype=torch.bool)
    chosen[order] = (upto > before) & (group[order] >= 0)
    return chosen
