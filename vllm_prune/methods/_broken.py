"""Tokens that hold NaN or Inf, and zero vectors: they carry nothing, so others come first."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_prune.methods._device import working_set
from vllm_prune.methods._numerics import LARGEST_NORM

_COPY_BYTES = 16 << 20  # tokens are widened to float32 this much at a time


def find_usable(features: Tensor) -> Tensor:
    """[N] bool: which of `features` [N, C] are neither NaN nor Inf anywhere, nor zero, nor longer than 1e18."""
    wide = torch.promote_types(features.dtype, torch.float32)
    at_once = max(1, working_set(_COPY_BYTES, features.device) // (4 * features.shape[1]))
    rows = [features] if features.dtype == wide else features.split(at_once)
    norm = torch.cat([torch.linalg.vector_norm(part.to(wide), dim=1) for part in rows])
    return (norm > 0) & (norm <= LARGEST_NORM)


def spare_broken(root: Tensor, usable: Tensor) -> Tensor:
    """[N] int64: `root`, in which no slot is spent on broken tokens while a usable token has none to itself.

    root: [N] int64, the anchor of each token's slot, -1 where it is dropped. usable: [N] bool.
    Broken tokens leave the slots that they share, so that no NaN reaches a mean; the first usable member then leads. A
    slot that had only broken ones goes to a usable token that leads none, of all these to evenly spread ones. The
    number of slots stays.

    >>> root, usable = torch.tensor([0, 0, 2, 3, 3]), torch.tensor([False, True, False, True, True])
    >>> spare_broken(root, usable).tolist()
    [-1, 1, -1, 3, 4]
    """
    if not root.is_cuda and bool(usable.all()):  # a GPU would have to be waited for
        return root
    index = torch.arange(len(root), device=root.device)
    nobody = len(root)
    member = torch.where(usable & (root >= 0), root, nobody)
    first = torch.full((nobody + 1,), nobody, device=root.device).scatter_reduce_(0, member, index, "amin")[:-1]
    leader = torch.where(usable, index, first)
    spared = torch.where(usable & (root >= 0), leader[root], -1)
    empty = (root == index) & (leader == nobody)
    free = usable & (spared != index)
    moved = torch.minimum(empty.sum(), free.sum())
    upto, total = free.cumsum(0), free.sum().clamp(min=1)
    promoted = free & (upto * moved // total > (upto - 1) * moved // total)
    stays = empty & (empty.cumsum(0) > moved)
    return torch.where(promoted | stays, index, spared)
