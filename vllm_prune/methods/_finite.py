"""Features of a video as methods compute with them, widened to float32 a block at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from vllm_prune.methods._device import working_set
from vllm_prune.methods._numerics import LARGEST_NORM, to_finite
from vllm_prune.methods._ragged import Batch

_WHOLE_BYTES = 64 << 20  # a video that takes no more is widened once
_BLOCK_BYTES = 16 << 20  # what is widened at a time of a longer one


class FiniteFeatures:
    """What `to_finite` makes of features [N, C], of which no more than a block exists at a time.

    Rows come in float32 (float64 stays), finite, and are not to be written to; they are views where nothing has to
    change. norm: [N], 0 for the zero vectors and for what became one.
    """

    def __init__(self, features: Tensor) -> None:
        """`features`: [N, C], any floating-point dtype, any layout in memory."""
        self.dtype = torch.promote_types(features.dtype, torch.float32)
        self.channels = features.shape[1]
        self._features, self._broken = features, None
        row_bytes = self.channels * self.dtype.itemsize
        if len(features) * row_bytes <= _WHOLE_BYTES:
            self.block = max(1, len(features))
            self._features, self.norm = to_finite(features)
            return
        self.block = max(1, working_set(_BLOCK_BYTES, features.device) // row_bytes)
        norm = torch.cat([torch.linalg.vector_norm(self._widen(part), dim=1) for part in features.split(self.block)])
        broken = ~(norm <= LARGEST_NORM)
        if norm.is_cuda or bool(broken.any()):  # a mask costs less than waiting for the device
            self._broken = broken
            norm = norm.masked_fill_(broken, 0)
        self.norm = norm

    def __len__(self) -> int:
        return len(self._features)

    def without(self, zeros: Tensor) -> FiniteFeatures:
        """The same, with zero vectors where `zeros` [N] is true."""
        other = copy.copy(self)
        other.norm = self.norm.masked_fill(zeros, 0)
        other._broken = zeros if self._broken is None else self._broken | zeros
        return other

    def blocks(self, unit: int = 1) -> Iterator[slice]:
        """Consecutive rows, as many units (frames of `unit` rows) at a time as fit a block, at least one."""
        step = max(1, self.block // unit) * unit
        for start in range(0, len(self), step):
            yield slice(start, min(start + step, len(self)))

    def rows(self, part: slice) -> Tensor:
        """[n, C]: consecutive rows."""
        return self._finite(self._features[part], None if self._broken is None else self._broken[part])

    def take(self, index: Tensor) -> Tensor:
        """[..., C]: the rows at `index` [...]."""
        return self._finite(self._features[index], None if self._broken is None else self._broken[index])

    def members(self, batch: Batch) -> Tensor:
        """[B, n, C]: the rows of a batch's members."""
        found = batch.view(self._features)
        if found is None:
            return self.take(batch.index)
        return self._finite(found, None if self._broken is None else self._broken[batch.index])

    def cells(self, frames: int, part: slice, chosen: slice | Tensor) -> Tensor:
        """[c, F, C]: the cells `chosen` of the frames in `part`, of a video of so many `frames`."""
        broken = None if self._broken is None else self._broken.view(frames, -1)[part].mT[chosen]
        return self._finite(self._features.unflatten(0, (frames, -1))[part].transpose(0, 1)[chosen], broken)

    def _finite(self, rows: Tensor, broken: Tensor | None) -> Tensor:
        wide = self._widen(rows)
        if broken is None:
            return wide
        return wide.masked_fill(broken[..., None], 0) if wide is rows else wide.masked_fill_(broken[..., None], 0)

    def _widen(self, rows: Tensor) -> Tensor:
        if rows.dtype == self.dtype and rows.stride(-1) == 1:
            return rows
        return torch.empty(rows.shape, dtype=self.dtype, device=rows.device).copy_(rows)
