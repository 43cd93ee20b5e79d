"""What suits a CPU, and what suits a GPU, which the host should neither wait for nor call more often than need be."""

from __future__ import annotations

import torch
from torch import Tensor

_GPU_FACTOR = 16


def working_set(cpu_bytes: int, device: torch.device) -> int:
    """Bytes to work on at a time: `cpu_bytes`, made for a processor's cache, on a CPU; 16 times as many elsewhere.

    A GPU is fed by large launches, and each piece takes some.
    """
    return cpu_bytes if device.type == "cpu" else _GPU_FACTOR * cpu_bytes


def true_places(mask: Tensor, count: int) -> Tensor:
    """[count] int64: the indices at which `mask` [N] is true, increasing. `count`: how many there are.

    Like `mask.nonzero()`, but whoever knows the count does not have to wait for the device to count.

    >>> true_places(torch.tensor([False, True, False, True]), 2).tolist()
    [1, 3]
    """
    place = torch.where(mask, mask.cumsum(0) - 1, count)
    index = torch.arange(len(mask), device=mask.device)
    return index.new_empty(count + 1).scatter_(0, place, index)[:count]
