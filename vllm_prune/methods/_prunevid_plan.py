"""What PruneVid sees in a video before any budget: segments, and how still each cell is within one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_prune.methods._numerics import invert, to_finite
from vllm_prune.methods._ragged import sizes
from vllm_prune.methods._segments import segment_by_clusters
from vllm_prune.methods.base import VideoTokens

_FRAMES_AT_ONCE = 64  # a weighted sum over frames is one product per this many, so its cost stays linear in frames


@dataclass(frozen=True)
class Measure:
    """A video, measured.

    features: [T*H*W, C] finite. segment: [T] int64. segment_length, first_frame: [S] int64, in frames.
    similarity: [S, H*W], mean pairwise cosine similarity of a cell over a segment's frames; -Inf for a single frame.
    cell_mean: [S, H*W, C], mean features of a cell over a segment's frames.
    """

    features: Tensor
    segment: Tensor
    segment_length: Tensor
    first_frame: Tensor
    similarity: Tensor
    cell_mean: Tensor


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


def measure(tokens: VideoTokens, segments: int, k: int) -> Measure:
    """Cut an unpruned video into `segments` and measure every cell of each."""
    frames, height, width = tokens.grid_thw
    features, norm = to_finite(tokens.features)
    video = features.view(frames, height * width, -1)
    segment = segment_by_clusters(video.mean(1), segments, k)
    length = sizes(segment, segments)
    similarity, cell_mean = _compare_cells(video, norm.view(frames, -1), segment, length)
    return Measure(features, segment, length, length.cumsum(0) - length, similarity, cell_mean)


def make_plan(measured: Measure, static: Tensor) -> PruneVidPlan:
    """The plan in which the cells `static` [S, H*W] are merged over time."""
    segment, segments = measured.segment, len(static)
    frame = torch.arange(len(segment), device=segment.device)
    is_first = frame == measured.first_frame[segment]
    static_group = torch.where(is_first, segment, -1)
    group = torch.where(static[segment], static_group[:, None], segments + frame[:, None])
    return PruneVidPlan(segment, static, group.flatten())


def _compare_cells(video: Tensor, norm: Tensor, segment: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Similarity [S, H*W] and mean [S, H*W, C] of each cell over each segment.

    video: [T, H*W, C]. norm: [T, H*W]. For n unit vectors the pairwise products sum to |their sum|^2 - n, so no pair is
    ever formed. Both sums are one batched product per run of segments.
    """
    last = length.cumsum(0).tolist()
    similarity, means = [], []
    first = start = 0
    while first < len(last):
        stop = first + 1
        while stop < len(last) and last[stop] - start <= _FRAMES_AT_ONCE:
            stop += 1
        frames = slice(start, last[stop - 1])
        member = segment[frames] == torch.arange(first, stop, device=segment.device)[:, None]
        part = _compare_run(video[frames], norm[frames], member.to(video.dtype))
        similarity.append(part[0])
        means.append(part[1])
        first, start = stop, last[stop - 1]
    return torch.cat(similarity), torch.cat(means)


def _compare_run(video: Tensor, norm: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
    """`_compare_cells` for the frames of a few segments; `member` [S, T] is 1 where a frame belongs to a segment."""
    count = member.sum(1, keepdim=True)
    to_units = member * invert(norm).mT[:, None, :]
    to_means = (member / count).expand_as(to_units)
    sums = torch.cat((to_units, to_means), 1) @ video.transpose(0, 1)  # [H*W, 2 S, C]
    units, means = sums.transpose(0, 1).chunk(2)
    nonzero = member @ (norm > 0).to(member.dtype)
    pairs = count * (count - 1)
    similarity = (torch.linalg.vector_norm(units, dim=2).square() - nonzero) / pairs
    return similarity.masked_fill(pairs == 0, -torch.inf), means
