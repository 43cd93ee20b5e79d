"""Cutting a video where that leaves most repeated tokens (HoliTom, section 3.2), by dynamic programming."""

from __future__ import annotations

import torch
from torch import Tensor

LONGEST = 64
"""Frames of a segment: time and memory grow linearly with the video."""


def run_lengths(repeats: Tensor) -> Tensor:
    """[T, H*W] int64: how many frames up to this one repeat the one before, without a break, at most LONGEST - 1.

    repeats: [T, H*W] bool; the first frame repeats nothing, whatever it says.

    >>> run_lengths(torch.tensor([[False], [True], [True], [False], [True]])).flatten().tolist()
    [0, 1, 2, 0, 1]
    """
    frame = torch.arange(len(repeats), device=repeats.device)[:, None]
    broken = torch.where(repeats & (frame > 0), -1, frame).cummax(0).values
    return (frame - broken).clamp(max=LONGEST - 1)


def cut_redundant(run: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The segments in which most tokens are redundant: cells that repeat throughout, less one for each.

    run: [T, H*W], from `run_lengths`. Returns the segment of each frame [T] int64 from 0 up, and the first and the last
    frame of each segment [S] int64. Of equally good cuts, the later one.

    >>> cut_redundant(run_lengths(torch.tensor([[False], [True], [False], [True], [True]])))[0].tolist()
    [0, 0, 1, 1, 1]
    """
    frames = len(run)
    # How many cells of a segment that ends here, `length` frames after it began, are redundant.
    counts = torch.zeros(frames, LONGEST, dtype=torch.int64, device=run.device)
    counts.scatter_add_(1, run, torch.ones_like(run))
    redundant = counts.flip(1).cumsum(1).flip(1)
    gain = (redundant * torch.arange(LONGEST, device=run.device)).cpu()
    best = torch.zeros(frames + 1, dtype=torch.int64)
    back = [0] * frames
    for frame in range(frames):
        longest = min(frame + 1, LONGEST)
        value = best[frame + 1 - longest : frame + 1].flip(0) + gain[frame, :longest]
        back[frame] = int(value.argmax())
        best[frame + 1] = value[back[frame]]
    return _trace_back(back, run.device)


def _trace_back(back: list[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """`cut_redundant`'s answer, from how far back the best segment that ends at each frame begins."""
    first, last = [], []
    frame = len(back) - 1
    while frame >= 0:
        first.append(frame - back[frame])
        last.append(frame)
        frame -= back[frame] + 1
    starts, stops = (torch.tensor(places[::-1], device=device) for places in (first, last))
    return torch.arange(len(first), device=device).repeat_interleave(stops - starts + 1), starts, stops
