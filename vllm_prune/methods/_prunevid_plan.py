"""What PruneVid sees in a video before any budget: segments, and how still each cell is within one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vllm_prune.methods._device import working_set
from vllm_prune.methods._numerics import invert, to_finite
from vllm_prune.methods._ragged import sizes
from vllm_prune.methods._segments import average_frames, segment_by_clusters
from vllm_prune.methods.base import VideoTokens

_FRAMES_AT_ONCE = 16  # a weighted sum over frames is one product per this many, so its cost stays linear in frames
_SUM_BYTES = 2 << 20  # sums made at a time
_STILL_SHARE = 0.9  # of the cells, for neighbouring segments to be one
_AS_ALIKE = 0.005  # how much less similar (cosine) a cell may be across both than within the less similar one


@dataclass(frozen=True)
class Measure:
    """A video, measured.

    features: [T*H*W, C] finite. usable: [T*H*W] bool, False for zero vectors. segment: [T] int64. segment_length,
        first_frame: [S] int64, in frames.
    ends: for every segment the frame behind its last one, on the host.
    similarity: [S, H*W], mean pairwise cosine similarity of a cell over a segment's frames; -Inf for a single frame.
    """

    features: Tensor
    usable: Tensor
    segment: Tensor
    segment_length: Tensor
    first_frame: Tensor
    ends: list[int]
    similarity: Tensor


@dataclass(frozen=True)
class PruneVidPlan:
    """Where PruneVid merges, for pictures and for budgets.

    segment: [T] int64, the segment of each frame, non-decreasing from 0.
    static: [S, H*W] bool, the cells merged over time in each segment.
    group: [T*H*W] int64, the group a token is clustered in: s for the static cells of segment s (only the token of its
        first frame carries it, the others are -1), S + t for the dynamic cells of frame t.
    """

    segment: Tensor
    static: Tensor
    group: Tensor

    @property
    def group_sizes(self) -> Tensor:
        """[S + T] int64: tokens of each group after merging over time."""
        return sizes(self.group, len(self.static) + len(self.segment))


def measure(tokens: VideoTokens, segments: int, k: int, tau: float) -> Measure:
    """Cut an unpruned video into up to `segments` and measure every cell of each.

    Neighbours of which nearly all cells are static (similarity above `tau`), and as much alike across the cut as within
    each, become one segment.
    """
    frames, height, width = tokens.grid_thw
    features, norm = to_finite(tokens.features)
    video = features.view(frames, height * width, -1)
    segment = segment_by_clusters(average_frames(video), segments, k)
    length = sizes(segment, segments)
    end = length.cumsum(0)
    ends = end.tolist()
    inverse = invert(norm.view(frames, -1))
    similarity = _compare_cells(video, inverse, segment, length, ends)
    if not (similarity.is_cuda or has_still_neighbours(similarity, tau)):  # a GPU would have to be waited for
        return Measure(features, norm > 0, segment, length, end - length, ends, similarity)
    joins, of_run = join_still(video, inverse, segment, length, ends, tau)
    joined = joins.tolist()
    if any(joined):
        last = [not more for more in (*joined[1:], False)]
        ends = [stop for stop, is_last in zip(ends, last, strict=True) if is_last]
        similarity = torch.stack([row for row, is_last in zip(of_run, last, strict=True) if is_last])
        segment = segment - joins.long().cumsum(0)[segment]
        length = sizes(segment, len(ends))
        end = length.cumsum(0)
        similarity = similarity.masked_fill((length == 1)[:, None], -torch.inf)
    return Measure(features, norm > 0, segment, length, end - length, ends, similarity)


def make_plan(measured: Measure, static: Tensor) -> PruneVidPlan:
    """The plan in which the cells `static` [S, H*W] are merged over time."""
    segment, segments = measured.segment, len(static)
    frame = torch.arange(len(segment), device=segment.device)
    is_first = frame == measured.first_frame[segment]
    static_group = torch.where(is_first, segment, -1)
    group = torch.where(static[segment], static_group[:, None], segments + frame[:, None])
    return PruneVidPlan(segment, static, group.flatten())


def average_cells(measured: Measure) -> Tensor:
    """[H*W, S, C]: the mean of each cell over each segment."""
    video = measured.features.view(len(measured.segment), -1, measured.features.shape[1])
    weight = (1 / measured.segment_length.to(video.dtype))[measured.segment]
    weights = weight[:, None].expand(video.shape[:2])
    return _sum_cells(video, weights, measured.segment, measured.ends, video.shape[2], lambda sums: sums)


def has_still_neighbours(similarity: Tensor, tau: float) -> bool:
    """Whether a still segment has a neighbour that is still or of a single frame, which has the similarity -Inf."""
    still = (similarity > tau).float().mean(1) >= _STILL_SHARE
    single = similarity[:, 0] == -torch.inf
    return bool(((still[1:] & (still | single)[:-1]) | (still[:-1] & (still | single)[1:])).any())


def join_still(
    video: Tensor, inverse: Tensor, segment: Tensor, length: Tensor, ends: list[int], tau: float
) -> tuple[Tensor, list[Tensor]]:
    """[S] bool: whether each segment is one with those before it, back to the last that is not.

    And for each segment the similarity [H*W] of cells over all these, itself included.
    video: [T, H*W, C]. inverse: [T, H*W], of the norms. segment: [T] int64. length, ends: of S segments.
    """
    sums = _sum_cells(video, inverse, segment, ends, video.shape[2], lambda found: found).transpose(0, 1)
    usable = torch.zeros_like(inverse[: len(ends)]).index_add_(0, segment, (inverse > 0).to(inverse.dtype))
    own = _mean_cosine(sums, usable, length[:, None])
    run, joins = (sums[0], usable[0], length[0], own[0]), [torch.zeros_like(length[0], dtype=torch.bool)]
    of_run = [own[0]]
    for part in zip(sums[1:], usable[1:], length[1:], own[1:], strict=True):
        both = run[0] + part[0], run[1] + part[1], run[2] + part[2]
        together = _mean_cosine(*both)
        least = torch.minimum(run[3], part[3])
        alike = (together > tau) & (together > least - _AS_ALIKE)
        joins.append(alike.to(together.dtype).mean() >= _STILL_SHARE)
        merged = (*both, together)
        run = tuple(torch.where(joins[-1], new, old) for new, old in zip(merged, part, strict=True))
        of_run.append(run[3])
    return torch.stack(joins), of_run


def _mean_cosine(total: Tensor, usable: Tensor, length: Tensor) -> Tensor:
    """[...] mean over all pairs of `length` unit vectors with sum `total` [..., C], of which `usable` are not zero.

    The products of all pairs of n unit vectors sum to |their sum|^2 - n, so no pair is ever formed. A single one counts
    as like itself: 1.
    """
    square = torch.linalg.vector_norm(total, dim=-1).square()
    pairs = length * (length - 1)
    return torch.where(pairs > 0, (square - usable) / pairs.clamp(min=1), 1)


def _compare_cells(video: Tensor, inverse: Tensor, segment: Tensor, length: Tensor, ends: list[int]) -> Tensor:
    """Similarity [S, H*W] of each cell over each segment. video: [T, H*W, C]. inverse: [T, H*W], of the norms.

    As `_mean_cosine` has it.
    """
    norm_of_sums = partial(torch.linalg.vector_norm, dim=2, keepdim=True)
    total = _sum_cells(video, inverse, segment, ends, 1, norm_of_sums).squeeze(2).mT
    nonzero = torch.zeros_like(total).index_add_(0, segment, (inverse > 0).to(inverse.dtype))
    pairs = (length * (length - 1))[:, None]
    return ((total.square() - nonzero) / pairs).masked_fill(pairs == 0, -torch.inf)


def _sum_cells(
    video: Tensor, weight: Tensor, segment: Tensor, ends: list[int], width: int, finish: Callable[[Tensor], Tensor]
) -> Tensor:
    """[H*W, S, width]: what `finish` makes of the weighted sums of each cell over the frames of each segment.

    video: [T, H*W, C]. weight: [T, H*W]. segment: [T]. ends: of S segments. finish: from [c, R, C], the sums
    of some cells and segments, few enough to be in the processor's cache, to [c, R, width].
    """
    found = video.new_empty(video.shape[1], len(ends), width)
    at_once = working_set(_SUM_BYTES, video.device)
    first = start = 0
    while first < len(ends):
        stop = first + 1
        while stop < len(ends) and ends[stop] - start <= _FRAMES_AT_ONCE:
            stop += 1
        frames = slice(start, ends[stop - 1])
        member = segment[frames] == torch.arange(first, stop, device=segment.device)[:, None]
        weights = (member * weight[frames].mT[:, None, :]).contiguous()  # else the product is made matrix by matrix
        cells = max(1, at_once // (4 * (stop - first) * video.shape[2]))
        parts = weights.split(cells), video[frames].transpose(0, 1).split(cells), found[:, first:stop].split(cells)
        for part, features, into in zip(*parts, strict=True):
            into.copy_(finish(part @ features))
        first, start = stop, ends[stop - 1]
    return found
