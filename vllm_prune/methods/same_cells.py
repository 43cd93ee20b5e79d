"""Which cells of a picture say something new, from its pixels alone: before the vision encoder.

A cell is the area of one merged token. Pictures of pages and screens are flat in most places, and a flat cell says what
its neighbour said. As in lossless image coders, each cell is predicted from a neighbour that a reader has seen before,
and only cells that differ from their prediction are encoded (PixelPrune: Wang et al., 2026, arXiv:2604.00886; the
predictor is that of LOCO-I: Weinberger et al., IEEE Transactions on Image Processing, 2000, without its plane).

What stays is where something begins: the first cell of a flat area, and again the first one behind whatever interrupts
it. So a picture follows from its encoded cells, their places and this rule alone, which one cell for a whole area would
not give: how far a line or a bar reaches would be lost.

Differences from PixelPrune's code: which neighbour predicts is decided by distances, so that it does not depend on the
threshold; and the cells of a higher threshold are among those of a lower one.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_WHOLE = 1e-2  # grey levels from a whole number that the arithmetic of a processor's normalisation leaves
_CELLS_AT_ONCE = 64  # so that what is made of them stays in the processor's own cache


@dataclass(frozen=True)
class SamePlan:
    """What of a picture is encoded.

    encoded: [N] bool, in reading order; the first cell always is.
    stand_in: [N] int64, the encoded cell that a cell is as good as equal to: itself where it is encoded.
    """

    encoded: Tensor
    stand_in: Tensor


def plan_same(levels: Tensor, grid: tuple[int, int], within: float = 0) -> SamePlan:
    """A cell is encoded when it differs from its prediction.

    Args:
        levels: Grey levels of every cell, [H * W, pixels], as `cell_levels` makes them.
        grid: (H, W) in cells.
        within: Grey levels by which any pixel of a cell may differ from the one that stands in for it; 0: none.
            A higher value encodes a subset of what a lower one does.

    >>> page = torch.zeros(2 * 3, 4)
    >>> page[4] = 1.0
    >>> plan_same(page, (2, 3)).stand_in.view(2, 3).tolist()
    [[0, 0, 0], [0, 4, 5]]
    """
    parent, apart = _predictions(levels, *grid)
    stand_in = _roots(torch.where(apart == 0, parent, torch.arange(len(levels))))
    if within > 0:
        stand_in = _Joining(levels, parent, apart, stand_in).up_to(within)
    return SamePlan(stand_in == torch.arange(len(levels)), stand_in)


def cell_levels(patches: Tensor, *, merge: int, frames: int, scale: Tensor, black: Tensor) -> Tensor:
    """Grey levels of every cell of a picture, [N, pixels], on the CPU: uint8 where all of them are whole, else float32.

    Args:
        patches: As Qwen's image processor yields them, [N * merge**2, channels * frames * patch * patch].
        merge: Patches along a side of a cell.
        frames: How often the picture is repeated along time; one of them is looked at.
        scale: Grey levels per unit of a pixel value, [channels].
        black: Grey level of a pixel value of 0, [channels].
    """
    cells = patches.cpu().view(len(patches) // merge**2, merge**2, len(scale), frames, -1)[:, :, :, 0]
    if cells.dtype == torch.uint8:
        return cells.flatten(1)
    scale, black = scale[:, None], black[:, None]
    pieces = [_whole_levels(some.float(), scale, black) for some in cells.split(_CELLS_AT_ONCE)]
    if all(piece is not None for piece in pieces):
        return torch.cat([piece for piece in pieces if piece is not None]).flatten(1)
    # Not moved to where black is 0: equal values stay equal, unequal ones unequal.
    return (cells.float() * scale).flatten(1)


def _whole_levels(cells: Tensor, scale: Tensor, black: Tensor) -> Tensor | None:
    """Grey levels as uint8; None where some are not whole, or not of 0 to 255."""
    levels = torch.addcmul(black, cells, scale)
    whole = (levels + 0.5).to(torch.uint8)
    return whole if bool((levels.sub_(whole).abs_() < _WHOLE).all()) else None


def _predictions(levels: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """For every cell the one that predicts it, [N] int64 (the first: itself), and how far it is from it, [N].

    That is the cell to the left; along a vertical border (the cells to the left and above it are alike, those above it
    are not), the cell above.
    """
    number = torch.arange(height * width).view(height, width)
    across = levels.new_zeros(height, width, dtype=torch.float32)
    down = across.clone()
    across[:, 1:] = _distance(levels, number[:, 1:].flatten(), number[:, :-1].flatten()).view(height, -1)
    down[1:] = _distance(levels, number[1:].flatten(), number[:-1].flatten()).view(-1, width)
    from_above = torch.zeros(height, width, dtype=torch.bool)
    from_above[1:, 0] = True
    from_above[1:, 1:] = down[1:, :-1] < across[:-1, 1:]
    parent = torch.where(from_above, number - width, number - 1)
    parent[0, 0] = 0
    return parent.flatten(), torch.where(from_above, down, across).flatten().index_fill_(0, number[0, :1], torch.inf)


def _distance(levels: Tensor, some: Tensor, others: Tensor) -> Tensor:
    """Largest difference of any pixel between cells `some` [n] and `others` [n], [n] float32."""
    pieces = [torch.empty(0)]
    for some_now, others_now in zip(some.split(_CELLS_AT_ONCE), others.split(_CELLS_AT_ONCE), strict=True):
        a, b = levels[some_now], levels[others_now]
        pieces.append((torch.maximum(a, b) - torch.minimum(a, b)).amax(1).float())  # bytes know no negative difference
    return torch.cat(pieces)


def _roots(parent: Tensor) -> Tensor:
    """Where following `parent` [n] ends; it points to itself there."""
    while True:
        further = parent[parent]
        if torch.equal(further, parent):
            return parent
        parent = further


class _Joining:
    """Lets cells that are nearly as predicted join the one that stands in for their prediction, the nearest first.

    A cell joins with all that it stands for, when none of them is further from the new one than the threshold: so
    errors do not add up along a gradient, and raising the threshold only goes on where a lower one stopped.
    """

    def __init__(self, levels: Tensor, parent: Tensor, apart: Tensor, stand_in: Tensor) -> None:
        # NumPy, as every step looks at two cells only, and PyTorch takes longer to start than to work on them.
        self._levels, self._parent, self._stand_in = levels.numpy(), parent.tolist(), stand_in.tolist()
        self._ends: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        kept = (stand_in == torch.arange(len(stand_in))).nonzero().squeeze(1)[1:]  # the first has no prediction
        towards = _distance(levels, kept, stand_in[parent[kept]])
        self._steps = list(zip(towards.tolist(), kept.tolist(), strict=True))

    def up_to(self, within: float) -> Tensor:
        """Stand-ins [N] after all joins within a threshold."""
        # What is out of reach of a threshold now may come into reach later; it is not looked at again, so that the
        # first joins are the same whatever the threshold is.
        waiting = [step for step in self._steps if step[0] <= within]
        heapq.heapify(waiting)
        while waiting:
            level, cell = heapq.heappop(waiting)
            new = self._find(self._parent[cell])
            now = self._reach(cell, new)
            if now <= level:
                self._join(cell, new)
            elif now <= within:
                heapq.heappush(waiting, (now, cell))
        return _roots(torch.tensor(self._stand_in))

    def _find(self, cell: int) -> int:
        """The encoded cell that stands in for one."""
        while (stand_in := self._stand_in[cell]) != cell:
            self._stand_in[cell] = self._stand_in[stand_in]
            cell = stand_in
        return cell

    def _range(self, cell: int) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and the highest level of each pixel in the cells that one stands for."""
        return self._ends.get(cell) or (self._levels[cell],) * 2

    def _reach(self, cell: int, new: int) -> float:
        """The largest difference from cell `new` of any cell that `cell` stands for."""
        (low, high), other = self._range(cell), self._levels[new]
        return float(max((np.maximum(high, other) - other).max(), (other - np.minimum(low, other)).max()))

    def _join(self, cell: int, new: int) -> None:
        (low, high), (new_low, new_high) = self._range(cell), self._range(new)
        self._ends.pop(cell, None)
        self._ends[new] = np.minimum(low, new_low), np.maximum(high, new_high)
        self._stand_in[cell] = new
