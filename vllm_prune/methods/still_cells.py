"""Which cells of a video hold something new, from its pixels alone: stage 1 before the vision encoder.

A cell is the area of one merged token over one temporal patch. Cells are compared by coarse averages in grey levels, in
the same light: what the brightness of the whole frame changed by (flicker, exposure, slow drift) is taken off. So
sensor noise and compression hardly count, and a small moving thing does.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_prune.budget import merged_count
from vllm_prune.methods._segments import segment_by_clusters

GREY_LEVELS_PER_E = 9.0
"""Two cells `d` grey levels apart (root mean square of their averages, 0..255) are exp(-d / 9) alike: 0.7, 0.8 and 0.9
are 3.2, 2.0 and 0.9 grey levels."""

_NEIGHBOURS = 7
_PATCHES_AT_ONCE = 512  # where they have to be converted to float32: a copy that stays in the processor's own cache
_BYTES_AT_ONCE = 1 << 20  # that are copied; more would be fetched from memory twice
_MOST_LIGHT = 1.4  # a frame this many times as bright as the version compared with is another picture
_DARK = 16.0  # grey levels below which a ratio of brightness says nothing


@dataclass(frozen=True)
class StillPlan:
    """What of a video is encoded.

    novelty: [T, H*W], how little each cell is like the version it is compared with, 0..1; 1 where there is none.
    encoded: [T, H*W] bool. The first frame's cells always are; a cell that is not is stood in for by the last one
        before it at the same place that is.
    segment: [T] int64, the segment of each frame; without segments, all 0.
    """

    novelty: Tensor
    encoded: Tensor
    segment: Tensor

    @property
    def per_frame(self) -> list[int]:
        """Encoded cells of each frame."""
        return self.encoded.sum(1).tolist()


def plan_runs(cells: Tensor, tau: float) -> StillPlan:
    """A cell is encoded when it is no longer `tau` like its last encoded version.

    cells: [T, channels, P, H*W] averages in grey levels, as `describe_cells` makes them. tau: 0 < tau < 1; higher
    encodes more.
    """
    mean = cells.mean(2)
    apart = mean.new_full((len(cells), cells.shape[3]), torch.inf)
    allowed = _apart_at(tau)
    last, last_mean = cells[0].clone(), mean[0]
    # Versions of different frames are compared in one light: how bright each was taken, relative to the first frame.
    now = mean.new_ones(mean.shape[1], 1)
    light = now.expand_as(last_mean)
    for frame in range(1, len(cells)):
        now = _gain(mean[frame], last_mean, light, now)
        apart[frame] = _squared_change(cells[frame], last, now / light)
        new = apart[frame] > allowed
        torch.where(new, cells[frame], last, out=last)
        last_mean, light = torch.where(new, mean[frame], last_mean), torch.where(new, now, light)
    return StillPlan(_novelty(apart), apart > allowed, torch.zeros(len(cells), dtype=torch.int64))


def plan_segments(cells: Tensor, tau: float, temporal_segment_ratio: float) -> StillPlan:
    """A cell that stays `tau` like its first version throughout a segment is encoded once in it, others every time.

    The novelty of a segment's first cells is that against the segment before, so that a limit on the plan can tell a
    cut from a segment that goes on as the last one did.

    cells, tau: as for `plan_runs`. temporal_segment_ratio: segments per frame.
    """
    frames, mean = len(cells), cells.mean(2)
    segments = max(1, round(temporal_segment_ratio * frames))
    segment = segment_by_clusters(cells.mean(3).flatten(1), segments, _NEIGHBOURS)
    starts = [0, *(segment.diff().nonzero().squeeze(1) + 1).tolist(), frames]
    apart = mean.new_full((frames, cells.shape[3]), torch.inf)
    encoded = torch.ones_like(apart, dtype=torch.bool)
    same = torch.ones_like(mean[0])
    for before, first, stop in zip([0, *starts], starts, starts[1:], strict=False):
        for frame in range(max(first, 1), stop):
            other = before if frame == first else first
            gain = _gain(mean[frame], mean[other], same, same[:, :1])
            apart[frame] = _squared_change(cells[frame], cells[other], gain)
        rest = slice(first + 1, stop)
        encoded[rest] = (apart[rest] > _apart_at(tau)).any(0)
    return StillPlan(_novelty(apart), encoded, segment)


def plan_changes(cells: Tensor, tau: float) -> StillPlan:
    """A cell is encoded when it is not `tau` like the frame before; what changes slowly enough is never seen again.

    Differential token drop on pixels (TimeChat-Online: Yao et al., ACM MM 2025, arXiv:2504.17343, section 3).
    cells, tau: as for `plan_runs`.
    """
    mean = cells.mean(2)
    apart = mean.new_full((len(cells), cells.shape[3]), torch.inf)
    same = torch.ones_like(mean[0])
    for frame in range(1, len(cells)):
        gain = _gain(mean[frame], mean[frame - 1], same, same[:, :1])
        apart[frame] = _squared_change(cells[frame], cells[frame - 1], gain)
    return StillPlan(_novelty(apart), apart > _apart_at(tau), torch.zeros(len(cells), dtype=torch.int64))


def raise_to(plan: StillPlan, minimum: int) -> StillPlan:
    """The plan with the newest of the cells left out encoded as well, until there are `minimum` (<= all of them)."""
    missing = minimum - int(plan.encoded.sum())
    if missing <= 0:
        return plan
    left_out = plan.novelty.masked_fill(plan.encoded, -1).flatten()
    more = torch.sort(left_out, descending=True, stable=True).indices[:missing]
    encoded = plan.encoded.flatten().clone()
    encoded[more] = True
    return StillPlan(plan.novelty, encoded.view_as(plan.encoded), plan.segment)


def lower_to(plan: StillPlan, ceiling: int, cluster_ratio: float) -> StillPlan:
    """The plan without the least new of its cells, where more would be left of it than `ceiling` tokens.

    It keeps as many as merging at `cluster_ratio` turns into `ceiling` tokens: encoding more is encoding for nothing,
    and encoding fewer leaves less to see than merging a little more does. The cells of a lower ceiling are among those
    of a higher one. The first frame stays whole, as nothing could stand in for it.
    """
    if merged_count(plan.per_frame, cluster_ratio) <= ceiling:
        return plan
    per_frame = plan.encoded.shape[1]
    merged = torch.tensor([merged_count([n], cluster_ratio) for n in range(per_frame + 1)])
    candidates = plan.encoded.clone()
    candidates[0] = False
    newest = torch.sort(plan.novelty.masked_fill(~candidates, -1).flatten(), descending=True, stable=True).indices
    newest = newest[: int(candidates.sum())]
    # Of the first frame and the n newest, for every n: cells, and the tokens that merging leaves of them.
    cells = per_frame + torch.arange(len(newest) + 1)
    more = merged.diff()[_rank_within(newest // per_frame)]
    tokens = torch.cat((merged[per_frame:], merged[per_frame] + more.cumsum(0)))
    enough = (cells * cluster_ratio >= ceiling) & (tokens >= ceiling)
    encoded = torch.zeros_like(plan.encoded)
    encoded[0] = True
    encoded.view(-1)[newest[: int(enough.nonzero()[0]) if bool(enough.any()) else None]] = True
    return StillPlan(plan.novelty, encoded, plan.segment)


def _rank_within(group: Tensor) -> Tensor:
    """How many items before each one are of its group, [n] int64.

    >>> _rank_within(torch.tensor([3, 1, 3, 3, 1])).tolist()
    [0, 0, 1, 2, 1]
    """
    order = torch.sort(group, stable=True).indices
    number = torch.arange(len(group), device=group.device)
    starts = torch.where(group[order].diff(prepend=group.new_full((1,), -1)) != 0, number, 0).cummax(0).values
    rank = torch.empty_like(number)
    rank[order] = number - starts
    return rank


def stand_ins(encoded: Tensor) -> Tensor:
    """For every cell the frame whose version stands in for it, [T, H*W] int64, itself where it is `encoded`.

    >>> stand_ins(torch.tensor([[True, True], [False, True], [False, False]])).tolist()
    [[0, 0], [0, 1], [0, 1]]
    """
    frame = torch.arange(len(encoded), device=encoded.device)[:, None]
    return torch.where(encoded, frame, 0).cummax(0).values


def describe_cells(
    patches: Tensor, grid: tuple[int, int, int], *, merge: int, patch: int, scale: Tensor, black: Tensor
) -> Tensor:
    """Averages of every cell's quarters of patches, in grey levels.

    Args:
        patches: As Qwen's video processor yields them, [T * H * W * merge**2, channels * frames * patch * patch].
        grid: (T, H, W) in cells.
        merge: Patches along a side of a cell.
        patch: Pixels along a side of a patch.
        scale: Grey levels per unit of a pixel value, [channels].
        black: Grey level of a pixel value of 0, [channels].

    Returns:
        [T, channels, merge**2 * 4, H*W] float32, on the CPU; `patch` is even.
    """
    t, h, w = grid
    weights = _quarters(patches.shape[1], patch, scale).to(patches.device)
    if patches.dtype == torch.uint8 and patches.device.type == "cpu":
        averages = _average_bytes(patches, weights)
    else:
        # One product reads every pixel once; reducing over the strided quarters takes several times as long.
        pieces = (patches,) if patches.dtype == torch.float32 else patches.split(_PATCHES_AT_ONCE)
        averages = torch.cat([torch.nn.functional.linear(some.float(), weights) for some in pieces])
    levels = averages.cpu().view(t, h * w, merge**2, len(scale), 4).permute(0, 3, 2, 4, 1)
    return (levels + black.view(-1, 1, 1, 1)).flatten(2, 3).contiguous()


def _average_bytes(patches: Tensor, weights: Tensor) -> Tensor:
    """[N, K] float32, `patches` [N, C] uint8 times `weights` [K, C]: of one value in each row, or 0.

    Sums are of integers, so exact, and take a tenth of the time that the same bytes take as floats.
    """
    outputs, pixels = weights.shape
    members = torch.zeros(pixels, -(-outputs // 16) * 16, dtype=torch.int8)
    members[:, :outputs] = (weights != 0).T
    pieces = patches.split(_BYTES_AT_ONCE // pixels)
    sums = torch.cat([torch._int_mm((some ^ 128).view(torch.int8), members) for some in pieces])  # of bytes less 128
    counted = (weights != 0).sum(1)
    return (sums[:, :outputs] + 128 * counted) * weights.amax(1)


def _quarters(size: int, patch: int, scale: Tensor) -> Tensor:
    """[channels * 4, size]: what a patch of `size` pixels is multiplied with for its quarters' averages."""
    frames, half = size // (len(scale) * patch**2), patch // 2
    weights = torch.zeros(len(scale), frames, 2, half, 2, half, len(scale), 2, 2)
    for channel, down, across in itertools.product(range(len(scale)), range(2), range(2)):
        weights[channel, :, down, :, across, :, channel, down, across] = scale[channel] / (frames * half**2)
    return weights.view(size, -1).T.contiguous()  # this way round the product takes half the time


def _gain(mean: Tensor, last_mean: Tensor, light: Tensor, before: Tensor) -> Tensor:
    """[channels, 1]: how bright a frame of `mean` [channels, n] is, in the unit of its cells' `light` [channels, n].

    That of most cells, so that what moves does not count; `before` where all is dark.
    """
    ratio = (mean * light / last_mean).masked_fill(last_mean < _DARK, torch.nan)
    gain = ratio.nanmedian(1, keepdim=True).values
    return torch.where(gain > 0, gain, before)


def _squared_change(cells: Tensor, others: Tensor, gain: Tensor) -> Tensor:
    """[n] mean squared change from others to cells [channels, P, n], in a light that is `gain` [channels, n or 1]."""
    gain = gain.clamp(1 / _MOST_LIGHT, _MOST_LIGHT)[:, None]
    return torch.addcmul(cells, others, gain, value=-1).square_().flatten(0, 1).mean(0)


def _novelty(apart: Tensor) -> Tensor:
    """0..1 from mean squared change."""
    return 1 - torch.exp(-apart.sqrt() / GREY_LEVELS_PER_E)


def _apart_at(tau: float) -> float:
    """The mean squared change at which two cells are `tau` alike."""
    return (GREY_LEVELS_PER_E * math.log(tau)) ** 2
