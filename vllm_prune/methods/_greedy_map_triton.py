"""Greedy maximum a posteriori inference of determinantal point processes as one Triton kernel: no launches per pick.

Needs Triton, so it is imported only where that is known to be there. `_greedy_map` has the algorithm, on any device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096  # entries of earlier columns read at a time


def greedy_map(
    kernel: Tensor, explained: Tensor, weight: Tensor, valid: Tensor, steps: int, first: Tensor, exact: bool
) -> tuple[Tensor, Tensor]:
    """Picks and gains less 1, each [S, steps], as `_greedy_map.greedy_map` has them; one program for each segment.

    kernel: [S, n, n] cosines, float32 or float64. explained, weight: [S, n]. valid: [S, n] bool.
    first: [S] int64, the first picks. exact: remember every pick; else max cos^2 to any pick is explained.
    """
    segments, length = weight.shape
    kernel, weight, explained = kernel.contiguous(), weight.contiguous(), explained.contiguous()
    picks = torch.empty(segments, steps, dtype=torch.int64, device=kernel.device)
    gains = kernel.new_empty(segments, steps)
    columns = kernel.new_empty((segments, steps, length) if exact else (1,))
    width = triton.next_power_of_2(length)
    noise = 100 * torch.finfo(kernel.dtype).eps
    shape = {"EXACT": exact, "WIDTH": width, "ROWS": max(1, _TILE // width), "num_warps": 4 if width <= 512 else 8}
    with torch.cuda.device_of(kernel):
        _pick[(segments,)](
            kernel, explained, weight, valid.contiguous(), first, columns, picks, gains, length, steps, noise, **shape
        )
    return picks, gains


@triton.jit
def _pick(  # type: ignore[no-untyped-def]
    kernel,
    before,
    weight,
    valid,
    first,
    columns,
    picks,
    gains,
    length,
    steps,
    noise,
    EXACT: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    """All picks of one segment. Its state is in registers, but for the Cholesky columns, which only it reads."""
    segment = tl.program_id(0).to(tl.int64)
    kernel += segment * length * length
    columns += segment * steps * length
    token = tl.arange(0, WIDTH)
    inside = token < length
    relevance = tl.load(weight + segment * length + token, mask=inside, other=0)
    explained = tl.load(before + segment * length + token, mask=inside, other=1)
    is_open = tl.load(valid + segment * length + token, mask=inside, other=0) != 0
    start = tl.load(first + segment).to(tl.int32)
    for step in range(steps):
        score = tl.where(explained < 1 - noise, (relevance - 1) - relevance * explained, relevance - 3)
        score = tl.where(is_open, score, -float("inf"))
        pick = tl.where(step == 0, start, tl.argmax(score, 0))  # of equals the first
        tl.store(picks + segment * steps + step, pick.to(tl.int64))
        tl.store(gains + segment * steps + step, tl.sum(tl.where(token == pick, score, 0), 0))
        is_open = is_open & (token != pick)
        new = tl.load(kernel + pick * length + token, mask=inside, other=0)
        if EXACT:
            for known_first in range(0, step, ROWS):
                row = known_first + tl.arange(0, ROWS)
                known = row < step
                part = tl.load(columns + row * length + pick, mask=known, other=0)
                place = row[:, None] * length + token[None, :]
                block = tl.load(columns + place, mask=known[:, None] & inside[None, :], other=0)
                new -= tl.sum(block * part[:, None], 0)
            left = 1 - tl.sum(tl.where(token == pick, explained, 0), 0)
            column = new / tl.sqrt(tl.maximum(left, noise))
            tl.store(columns + step * length + token, column, mask=inside)
            tl.debug_barrier()  # other threads of the program read this column in the next step
            explained += column * column
        else:
            explained = tl.maximum(explained, new * new)
