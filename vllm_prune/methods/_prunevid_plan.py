"""What PruneVid sees in a video before any budget: segments, and how still each cell is within one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_prune.methods._device import working_set
from vllm_prune.methods._finite import FiniteFeatures
from vllm_prune.methods._numerics import invert
from vllm_prune.methods._ragged import Batch, groups_below, items_of, sizes
from vllm_prune.methods._segments import average_frames, segment_by_clusters
from vllm_prune.methods.base import VideoTokens

_FRAMES_AT_ONCE = 16  # a weighted sum over frames is one product per this many, so its cost stays linear in frames
_SUM_BYTES = 2 << 20  # sums made at a time
_STILL_SHARE = 0.9  # of the cells, for neighbouring segments to be one
_AS_ALIKE = 0.005  # how much less similar (cosine) a cell may be across both than within the less similar one


@dataclass(frozen=True)
class Measure:
    """A video, measured.

    features: [T*H*W, C]. usable: [T*H*W] bool, False for zero vectors. segment: [T] int64. segment_length,
        first_frame: [S] int64, in frames.
    ends: for every segment the frame behind its last one, on the host.
    similarity: [S, H*W], mean pairwise cosine similarity of a cell over a segment's frames; -Inf for a single frame.
    """

    features: FiniteFeatures
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
    frames = tokens.grid_thw[0]
    features = FiniteFeatures(tokens.features)
    usable = features.norm > 0
    segment = segment_by_clusters(average_frames(features, frames), segments, k)
    length = sizes(segment, segments)
    end = length.cumsum(0)
    ends = end.tolist()
    inverse = invert(features.norm.view(frames, -1))
    similarity = _compare_cells(features, inverse, segment, length, ends)
    if not (similarity.is_cuda or has_still_neighbours(similarity, tau)):  # a GPU would have to be waited for
        return Measure(features, usable, segment, length, end - length, ends, similarity)
    joins, of_run = join_still(features, inverse, segment, length, ends, tau)
    joined = joins.tolist()
    if any(joined):
        last = [not more for more in (*joined[1:], False)]
        ends = [stop for stop, is_last in zip(ends, last, strict=True) if is_last]
        similarity = torch.stack([row for row, is_last in zip(of_run, last, strict=True) if is_last])
        segment = segment - joins.long().cumsum(0)[segment]
        length = sizes(segment, len(ends))
        end = length.cumsum(0)
        similarity = similarity.masked_fill((length == 1)[:, None], -torch.inf)
    return Measure(features, usable, segment, length, end - length, ends, similarity)


def make_plan(measured: Measure, static: Tensor) -> PruneVidPlan:
    """The plan in which the cells `static` [S, H*W] are merged over time."""
    segment, segments = measured.segment, len(static)
    frame = torch.arange(len(segment), device=segment.device)
    is_first = frame == measured.first_frame[segment]
    static_group = torch.where(is_first, segment, -1)
    group = torch.where(static[segment], static_group[:, None], segments + frame[:, None])
    return PruneVidPlan(segment, static, group.flatten())


class CellMeans:
    """The mean of each cell over each segment: item s * H*W + cell of S * H*W, made for some segments at a time.

    Of batches whose groups are the segments.
    """

    def __init__(self, measured: Measure) -> None:
        self._measured, self._frames = measured, len(measured.segment)
        self._weight = 1 / measured.segment_length.to(measured.features.dtype)
        self.channels = measured.features.channels

    def members(self, batch: Batch) -> Tensor:
        """[B, n, C]: of the cells of some segments."""
        ends, cells = self._measured.ends, batch.index % self._measured.similarity.shape[1]
        found = self._weight.new_empty(*cells.shape, self.channels)
        for segment, chosen, into in zip(batch.ids, cells, found, strict=True):
            frames = slice(ends[segment - 1] if segment else 0, ends[segment])
            length = frames.stop - frames.start
            weight = self._weight[segment].expand(1, 1, length)
            at_once = max(1, self._measured.features.block // length)
            for some, means in zip(chosen.split(at_once), into.split(at_once), strict=True):
                rows = self._measured.features.cells(self._frames, frames, some)
                means.copy_((weight.expand(len(some), 1, length) @ rows).squeeze(1))
        return found


def has_still_neighbours(similarity: Tensor, tau: float) -> bool:
    """Whether a still segment has a neighbour that is still or of a single frame, which has the similarity -Inf."""
    still = (similarity > tau).float().mean(1) >= _STILL_SHARE
    single = similarity[:, 0] == -torch.inf
    return bool(((still[1:] & (still | single)[:-1]) | (still[:-1] & (still | single)[1:])).any())


def join_still(
    features: FiniteFeatures, inverse: Tensor, segment: Tensor, length: Tensor, ends: list[int], tau: float
) -> tuple[Tensor, list[Tensor]]:
    """[S] bool: whether each segment is one with those before it, back to the last that is not.

    And for each segment the similarity [H*W] of cells over all these, itself included.
    features: [T*H*W, C]. inverse: [T, H*W], of the norms. segment: [T] int64. length, ends: of S segments.
    """
    usable = torch.zeros_like(inverse[: len(ends)]).index_add_(0, segment, (inverse > 0).to(inverse.dtype))
    run: tuple[Tensor, ...] = ()
    joins, of_run = [torch.zeros_like(length[0], dtype=torch.bool)], []
    for total, valid, frames in zip(_sums(features, inverse, segment, ends), usable, length, strict=True):
        part = total, valid, frames, _mean_cosine(total, valid, frames)
        run = _join(run, part, joins, tau) if run else part
        of_run.append(run[3])
    return torch.stack(joins), of_run


def _join(run: tuple[Tensor, ...], part: tuple[Tensor, ...], joins: list[Tensor], tau: float) -> tuple[Tensor, ...]:
    """A run of segments with the next one, or that one alone; appends to `joins` which it is.

    Both are sum [H*W, C], usable frames [H*W] and all frames of each cell, and its similarity [H*W].
    """
    both = run[0] + part[0], run[1] + part[1], run[2] + part[2]
    together = _mean_cosine(*both)
    least = torch.minimum(run[3], part[3])
    alike = (together > tau) & (together > least - _AS_ALIKE)
    joins.append(alike.to(together.dtype).mean() >= _STILL_SHARE)
    merged = (*both, together)
    return tuple(torch.where(joins[-1], new, old) for new, old in zip(merged, part, strict=True))


def _sums(features: FiniteFeatures, weight: Tensor, segment: Tensor, ends: list[int]) -> Iterator[Tensor]:
    """For each segment the weighted sums [H*W, C] of cells over its frames; arguments as for `_sum_cells`."""
    cells = weight.shape[1]
    for run in groups_below(ends, min(_FRAMES_AT_ONCE, max(1, features.block // cells))):
        sums = weight.new_empty(cells, run.stop - run.start, features.channels)
        for some, found in _sum_run(features, weight, segment, ends, run):
            sums[some] = found
        yield from sums.unbind(1)


def _mean_cosine(total: Tensor, usable: Tensor, length: Tensor) -> Tensor:
    """[...] mean over all pairs of `length` unit vectors with sum `total` [..., C], of which `usable` are not zero.

    The products of all pairs of n unit vectors sum to |their sum|^2 - n, so no pair is ever formed. A single one counts
    as like itself: 1.
    """
    square = torch.linalg.vector_norm(total, dim=-1).square()
    pairs = length * (length - 1)
    return torch.where(pairs > 0, (square - usable) / pairs.clamp(min=1), 1)


def _compare_cells(
    features: FiniteFeatures, inverse: Tensor, segment: Tensor, length: Tensor, ends: list[int]
) -> Tensor:
    """Similarity [S, H*W] of each cell over each segment. features: [T*H*W, C]. inverse: [T, H*W], of the norms.

    As `_mean_cosine` has it.
    """
    total = inverse.new_empty(len(ends), inverse.shape[1])
    for run in groups_below(ends, _FRAMES_AT_ONCE):
        for some, found in _sum_run(features, inverse, segment, ends, run):
            total[run, some] = torch.linalg.vector_norm(found, dim=2).mT
    nonzero = torch.zeros_like(total).index_add_(0, segment, (inverse > 0).to(inverse.dtype))
    pairs = (length * (length - 1))[:, None]
    return ((total.square() - nonzero) / pairs).masked_fill(pairs == 0, -torch.inf)


def _sum_run(
    features: FiniteFeatures, weight: Tensor, segment: Tensor, ends: list[int], run: slice
) -> Iterator[tuple[slice, Tensor]]:
    """Some cells at a time, and the weighted sums [c, R, C] of each over the frames of each segment of a run.

    features: [T*H*W, C]. weight: [T, H*W]. segment: [T]. ends: of S segments. Sums are few enough to be in the
    processor's cache.
    """
    frames = items_of(ends, run)
    number = torch.arange(run.start, run.stop, device=segment.device)
    member = segment[frames] == number[:, None]
    weights = (member * weight[frames].mT[:, None, :]).contiguous()  # else the product is made matrix by matrix
    at_once = working_set(_SUM_BYTES, segment.device) // (4 * len(number) * features.channels)
    at_once = max(1, min(at_once, features.block // (frames.stop - frames.start)))
    for start in range(0, len(weights), at_once):
        some = slice(start, min(start + at_once, len(weights)))
        yield some, weights[some] @ features.cells(len(weight), frames, some)
