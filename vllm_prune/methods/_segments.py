"""Cutting a video into contiguous temporal segments."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_prune.methods._device import true_places
from vllm_prune.methods._dpc_knn import pick_centres, squared_distances
from vllm_prune.methods._finite import FiniteFeatures
from vllm_prune.methods._frame_distances import FrameDistances
from vllm_prune.methods._ragged import groups_below, items_of, sizes
from vllm_prune.methods.base import VideoTokens

_NEIGHBOURS = 7  # k of the DPC-KNN that groups frames, as in PruneVid
_DISTANCE_BYTES = 64 << 20  # of the distances between all frames; some more matrices of this size are made of them
_FRAMES_AT_ONCE = 16  # frames averaged in one product, so its cost stays linear in frames


def token_segments(tokens: VideoTokens, temporal_segment_ratio: float, longest: int | None = None) -> Tensor:
    """[N] int64: the segment of each token, below T. A ratio of 1 makes each frame one.

    Frames of a video that lost tokens already are compared by the mean of those they have. A segment of more than
    `longest` tokens is cut between frames, so that none has more than that and one frame.
    """
    frame = tokens.grid[:, 0]
    frames = tokens.grid_thw[0]
    if temporal_segment_ratio == 1:
        return frame
    count = sizes(frame, frames)
    segments = max(1, round(temporal_segment_ratio * frames))
    average = _average_present(FiniteFeatures(tokens.features), frame, count)
    segment = segment_by_clusters(average, segments, _NEIGHBOURS)
    return (segment if longest is None else cut_long(segment, count, longest))[frame]


def _average_present(features: FiniteFeatures, frame: Tensor, count: Tensor) -> Tensor:
    """[T, C] means over the tokens that each frame has, `count` [T]; 0 where it has none. frame: [N] int64."""
    number = torch.arange(len(count), device=frame.device)
    if len(features) <= features.block:
        weight = (frame == number[:, None]) / count.clamp(min=1)[:, None]
        return weight.to(features.dtype) @ features.rows(slice(None))
    order, average = frame.argsort(stable=True), features.norm.new_zeros(len(count), features.channels)
    ends = count.cumsum(0).tolist()  # one wait for a GPU
    for part in groups_below(ends, features.block, _FRAMES_AT_ONCE):
        index = order[items_of(ends, part)]
        weight = (frame[index] == number[part, None]) / count[part, None].clamp(min=1)
        average[part] = weight.to(features.dtype) @ features.take(index)
    return average


def cut_long(segment: Tensor, size: Tensor, longest: int) -> Tensor:
    """[T] int64, non-decreasing from 0: segments of which each piece begins below every `longest` tokens.

    segment: [T] int64, non-decreasing from 0. size: [T] int64, tokens of each frame.

    >>> cut_long(torch.tensor([0, 0, 0, 0, 1]), torch.tensor([5, 5, 5, 5, 5]), 10).tolist()
    [0, 0, 1, 1, 2]
    """
    before = size.cumsum(0) - size
    starts = torch.cat((segment[:1] >= 0, segment.diff() > 0))
    piece = (before - before[starts][segment]) // longest
    return torch.cat((segment[:1], ((segment.diff() > 0) | (piece.diff() > 0)).long().cumsum(0)))


def average_frames(features: FiniteFeatures, frames: int) -> Tensor:
    """[T, C] means over the tokens of each of the `frames` T of an unpruned video.

    As a product it runs at the speed of memory, twice that of `mean` over a middle dimension.
    """
    cells = len(features) // frames
    weight = features.norm.new_full((1, 1, 1), 1 / cells)
    average = features.norm.new_empty(frames, features.channels)
    for part in features.blocks(cells):
        video = features.rows(part).unflatten(0, (-1, cells))
        into = average[part.start // cells : part.stop // cells]
        into.copy_((weight.expand(len(video), 1, cells) @ video).squeeze(1))
    return average


def segment_by_clusters(frames: Tensor, count: int, k: int) -> Tensor:
    """The segment of each frame: DPC-KNN picks `count` centre frames, each segment surrounds one.

    frames: [T, C] finite, one feature per frame; 1 <= count <= T.
    Returns [T] int64, non-decreasing from 0 to count - 1. The cut between two neighbouring centres is where the summed
    distance, left frames to the left centre plus right frames to the right one, is least; of equal cuts the earliest.
    """
    if 4 * len(frames) ** 2 > _DISTANCE_BYTES:
        return _segment_long(FrameDistances(frames), len(frames), count, k)
    everything = torch.ones(1, len(frames), dtype=torch.bool, device=frames.device)
    squared = squared_distances(frames[None], everything)
    quota = torch.full((1,), count, device=frames.device)
    centre = true_places(pick_centres(squared, everything, quota, k)[0], count)
    cut = cut_between(squared[0].sqrt()[centre], centre)
    return torch.searchsorted(cut, torch.arange(len(frames), device=cut.device), right=True)


def _segment_long(distances: FrameDistances, frames: int, count: int, k: int) -> Tensor:
    """`segment_by_clusters` without the matrix of all distances, which are made several times instead."""
    centre = true_places(distances.pick_centres(count, k), count)
    step = max(1, distances.step // 8)  # more numbers, in float64
    pairs = [centre[first : first + step + 1] for first in range(0, count - 1, step)]
    cuts = [cut_between(distances.rows(some).sqrt(), some) for some in pairs]
    return torch.searchsorted(torch.cat([centre[:0], *cuts]), torch.arange(frames, device=centre.device), right=True)


def cut_between(distance: Tensor, centre: Tensor) -> Tensor:
    """[S - 1] int64: the first frame of segments 1..S-1.

    distance: [S, T] from each centre to each frame. centre: [S] int64, strictly increasing frame indices.

    >>> cut_between(torch.tensor([[0.0, 1.0, 5.0, 9.0], [9.0, 5.0, 4.0, 0.0]]), torch.tensor([0, 3])).tolist()
    [2]
    """
    left, right = centre[:-1, None], centre[1:, None]
    frame = torch.arange(distance.shape[1], device=distance.device)
    gain = (distance[:-1] - distance[1:]).double().masked_fill(frame <= left, 0)
    before = gain.cumsum(1) - gain  # cost of cutting at a frame, up to a constant
    outside = (frame <= left) | (frame > right)
    return before.masked_fill(outside, torch.inf).argmin(1)
