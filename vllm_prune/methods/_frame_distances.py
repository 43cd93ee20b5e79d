"""Distances between the frames of a long video, and DPC-KNN on them, without the matrix of all."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_prune.methods._device import working_set
from vllm_prune.methods._dpc_knn import FARTHER, score, without_noise
from vllm_prune.methods._numerics import rank_descending

_BLOCK_BYTES = 4 << 20  # of distances; a few more matrices of this size are made of them


class FrameDistances:
    """`squared_distances` of `frames` [T, C], which are all in one group, some rows at a time."""

    def __init__(self, frames: Tensor) -> None:
        self._frames = frames
        self.step = max(1, working_set(_BLOCK_BYTES, frames.device) // (4 * len(frames)))
        self._parts = [slice(start, start + self.step) for start in range(0, len(frames), self.step)]
        squares = [(frames[part] @ frames[part].mT).diagonal() for part in self._parts]
        self._square = torch.cat(squares) / frames.shape[1]

    def rows(self, some: slice | Tensor) -> Tensor:
        """[n, T]: from some frames to all."""
        product = self._frames[some] @ self._frames.mT
        return without_noise(product, self._square[some][:, None] + self._square, self._frames.shape[1])

    def pick_centres(self, count: int, k: int) -> Tensor:
        """[T] bool: the `count` best centres, as `pick_centres` picks them."""
        k = min(k, len(self._frames))
        nearest = torch.cat([self.rows(part).topk(k, dim=1, largest=False).values for part in self._parts])
        spread = nearest.sum(1) / k
        rank = rank_descending(-spread).to(spread.dtype)
        separation, largest = torch.empty_like(spread), spread.new_zeros(())
        for part in self._parts:
            distance = self.rows(part)
            largest = largest.maximum(distance.amax())
            no_denser = torch.relu((rank + 1) - rank[part, None]).mul_(FARTHER)
            separation[part] = no_denser.add_(distance).amin(1)
        separation = torch.where(separation >= FARTHER, largest, separation)
        return rank_descending(score(separation, spread)) < count
