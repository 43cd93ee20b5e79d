"""Which cells of a video hold something new, from its pixels alone: stage 1 before the vision encoder.

A cell is the area of one merged token over one temporal patch. Cells are compared by coarse averages in grey levels,
after what the whole frame changed by (flicker, exposure, slow drift) has been taken off: sensor noise and compression
hardly count, and a small moving thing does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_prune.methods._segments import segment_by_clusters

GREY_LEVELS_PER_E = 9.0
"""Two cells `d` grey levels apart (root mean square of their averages, 0..255) are exp(-d / 9) alike: 0.7, 0.8 and 0.9
are 3.2, 2.0 and 0.9 grey levels."""

_NEIGHBOURS = 7


@dataclass(frozen=True)
class StillPlan:
    """What of a video is encoded.

    novelty: [T, H*W], how little each cell is like the version that would stand in for it, 0..1; 1 where nothing could.
    encoded: [T, H*W] bool. The first frame's cells always are; a cell that is not is stood in for by the last one
    before
        it at the same place that is.
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

    cells: [T, H*W, D] averages in grey levels, as `describe_cells` makes them. tau: 0 < tau < 1; higher encodes more.
    """
    novelty = cells.new_ones(cells.shape[:2])
    encoded = torch.ones_like(novelty, dtype=torch.bool)
    last = cells[0].clone()
    for frame in range(1, len(cells)):
        novelty[frame] = 1 - _similarity(cells[frame], last)
        encoded[frame] = novelty[frame] > 1 - tau
        last = torch.where(encoded[frame][:, None], cells[frame], last)
    return StillPlan(novelty, encoded, torch.zeros(len(cells), dtype=torch.int64))


def plan_segments(cells: Tensor, tau: float, temporal_segment_ratio: float) -> StillPlan:
    """A cell that stays `tau` like its first version throughout a segment is encoded once in it, others every time.

    cells, tau: as for `plan_runs`. temporal_segment_ratio: segments per frame.
    """
    frames = len(cells)
    segment = segment_by_clusters(cells.mean(1), max(1, round(temporal_segment_ratio * frames)), _NEIGHBOURS)
    starts = torch.cat((torch.zeros(1, dtype=torch.int64), segment.diff().nonzero().squeeze(1) + 1))
    first = starts[segment]
    apart = 1 - torch.stack([_similarity(cells[t], cells[f]) for t, f in enumerate(first.tolist())])
    worst = torch.zeros(len(starts), cells.shape[1])
    worst.scatter_reduce_(0, segment[:, None].expand_as(apart), apart, "amax")
    is_first = torch.arange(frames) == first
    novelty = torch.where(is_first[:, None], torch.ones_like(apart), worst[segment])
    return StillPlan(novelty, novelty > 1 - tau, segment)


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


def stand_ins(encoded: Tensor) -> Tensor:
    """For every cell the frame whose version stands in for it, [T, H*W] int64, itself where it is `encoded`.

    >>> stand_ins(torch.tensor([[True, True], [False, True], [False, False]])).tolist()
    [[0, 0], [0, 1], [0, 1]]
    """
    frame = torch.arange(len(encoded), device=encoded.device)[:, None]
    return torch.where(encoded, frame, 0).cummax(0).values


def describe_cells(patches: Tensor, grid: tuple[int, int, int], *, merge: int, patch: int, scale: Tensor) -> Tensor:
    """Averages of every cell's quarters of patches, in grey levels.

    Args:
        patches: As Qwen's video processor yields them, [T * H * W * merge**2, channels * frames * patch * patch].
        grid: (T, H, W) in cells.
        merge: Patches along a side of a cell.
        patch: Pixels along a side of a patch.
        scale: Grey levels per unit of a pixel value, [channels].

    Returns:
        [T, H*W, merge**2 * channels * 4] float32; `patch` is even.
    """
    t, h, w = grid
    pixels = patches.view(t * h * w * merge**2, len(scale), -1, 2, patch // 2, 2, patch // 2)
    averages = pixels.mean((2, 4, 6), dtype=torch.float32) * scale.view(-1, 1, 1)
    return averages.view(t, h * w, -1)


def _similarity(cells: Tensor, others: Tensor) -> Tensor:
    """How alike cells [n, D] are to others [n, D], apart from what all of them changed by: [n] in 0..1."""
    change = cells - others
    change = change - change.median(0).values
    return torch.exp(-change.square().mean(1).sqrt() / GREY_LEVELS_PER_E)
