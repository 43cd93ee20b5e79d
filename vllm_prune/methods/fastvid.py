"""FastVID, dynamic density pruning (Shen et al., NeurIPS 2025, arXiv:2503.11187): segments, anchors, merging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vllm_prune.methods._broken import spare_broken
from vllm_prune.methods._checks import check_budget, check_integer, check_range, check_unpruned
from vllm_prune.methods._dpc_knn import pick_centres, squared_distances
from vllm_prune.methods._finite import FiniteFeatures
from vllm_prune.methods._kernels import nearest_in_batch
from vllm_prune.methods._numerics import invert, rank_descending
from vllm_prune.methods._ragged import batches, sizes
from vllm_prune.methods._segments import average_frames
from vllm_prune.methods._share import share_budget
from vllm_prune.methods.base import Assignment, VideoTokens

_LARGE_BLOCK = 1 << 16  # numbers


@dataclass(frozen=True, kw_only=True)
class FastVID:
    """Cut the video where it changes, keep density peaks of every few frames, merge all other tokens into them.

    1. A cut falls between two frames whose means are less similar (cosine) than `transition_threshold`, and at the
       `min_segments` - 1 least similar pairs in any case.
    2. Segments share the budget in proportion to length. A segment is divided into blocks of about `anchor_stride`
       frames, fewer if the budget is small, more if it exceeds the tokens of their first frames.
    3. In the first frame of a block the density peaks (DPC-KNN, `k` neighbours) are the anchors.
    4. Every other token of the block joins the anchor most similar to it (cosine).

    Where it differs from the paper: tokens merge into the anchors of their block, not of all anchor frames of their
    segment, so time stays linear in frames; a merged token is the plain mean of its members, where the authors' code
    leaves an anchor a weight of 0.6 at least; anchors lie in the first frame of blocks of equal length, there in the
    last of runs of nearly equal frames; and there is no share of tokens chosen by the attention of a class token, which
    the encoders of Qwen's models do not have. No more segments than slots: the least similar cuts stay.

    transition_threshold: -1 <= transition_threshold <= 1. min_segments, anchor_stride, k: >= 1.
    Ties keep the earlier token or frame. Tokens with NaN or Inf, and zero vectors,
    are dropped first.
    """

    transition_threshold: float = 0.9
    min_segments: int = 8
    anchor_stride: int = 4
    k: int = 4
    name: ClassVar[str] = "fastvid"
    no_images: ClassVar[str] = "it merges frames of a segment into one another, and a picture is a single frame"
    needs_every_token: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("transition_threshold", self.transition_threshold, -1, 1)
        check_integer("min_segments", self.min_segments, 1)
        check_integer("anchor_stride", self.anchor_stride, 1)
        check_integer("k", self.k, 1)

    def assign(self, tokens: VideoTokens, budget: int) -> Assignment:
        """Exactly `budget` slots."""
        check_budget(budget, tokens.num_tokens)
        check_unpruned(tokens.num_tokens, tokens.grid_thw, self.name)
        return self._merge(FiniteFeatures(tokens.features), tokens.grid_thw[0], budget)

    def _merge(self, features: FiniteFeatures, frames: int, budget: int) -> Assignment:
        """Exactly `budget` slots for the `features` [T*H*W, C] of so many frames."""
        cells = len(features) // frames
        average = average_frames(features, frames)
        segment = cut_at_transitions(average, self.transition_threshold, self.min_segments, most=budget)
        length = sizes(segment, int(segment[-1]) + 1)
        quota = share_budget(budget, length * cells)
        block, block_quota = divide(segment, length, quota, cells, self.anchor_stride)
        is_anchor = self._pick_anchors(features, block, block_quota, cells)
        root = join_anchors(features, block.repeat_interleave(cells), len(block_quota), is_anchor)
        return Assignment.from_roots(spare_broken(root, features.norm > 0), budget)

    def _pick_anchors(self, features: FiniteFeatures, block: Tensor, quota: Tensor, cells: int) -> Tensor:
        """[N] bool: `quota` [B] density peaks of the first frame of each block."""
        starts = torch.cat((block[:1] >= 0, (block.diff() > 0) & (block[1:] >= 0)))
        whole = starts & (quota[block] == cells)
        group = torch.where(starts & ~whole, block, -1).repeat_interleave(cells)
        is_anchor = whole.repeat_interleave(cells)
        for batch in batches(group, len(quota), features.channels):
            distance = squared_distances(features.members(batch), batch.valid)
            is_anchor[batch.index] = pick_centres(distance, batch.valid, quota[batch.group], self.k)
        return is_anchor


def cut_at_transitions(frames: Tensor, threshold: float, min_segments: int, most: int) -> Tensor:
    """[T] int64, the segment of each frame from 0 up, given one feature per frame in `frames` [T, C].

    A cut falls where neighbours are less similar (cosine) than `threshold`, and at the least similar pairs until there
    are `min_segments`; at the least similar of all these where that were more than `most` segments.

    >>> cut_at_transitions(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), 0.9, 1, 3).tolist()
    [0, 0, 1]
    """
    units = frames * invert(torch.linalg.vector_norm(frames, dim=1))[:, None]
    similarity = (units[1:] * units[:-1]).sum(1)
    rank = rank_descending(-similarity)
    cut = ((similarity < threshold) | (rank < min_segments - 1)) & (rank < most - 1)
    return torch.cat((cut.new_zeros(1), cut)).cumsum(0)


def divide(segment: Tensor, length: Tensor, quota: Tensor, cells: int, stride: int) -> tuple[Tensor, Tensor]:
    """Divide segments evenly into blocks of frames whose first frame has room for the block's tokens.

    segment: [T] int64. length, quota: [S], the frames and the budget of each segment.
    Returns the block of each frame, [T] int64 (-1 in a segment with no budget), and the quota of each block, 1..cells.

    >>> divide(torch.tensor([0, 0, 0, 0, 1]), torch.tensor([4, 1]), torch.tensor([3, 1]), 2, 4)
    (tensor([0, 0, 1, 1, 2]), tensor([2, 1, 1]))
    """
    blocks = ((length + stride - 1) // stride).maximum((quota + cells - 1) // cells).minimum(quota)
    offset = torch.arange(len(segment), device=segment.device) - (length.cumsum(0) - length)[segment]
    before = blocks.cumsum(0) - blocks
    block = before[segment] + offset * blocks[segment] // length[segment]
    owner = torch.arange(len(length), device=segment.device).repeat_interleave(blocks)
    place = torch.arange(len(owner), device=segment.device) - before[owner]
    block_quota = quota[owner] // blocks[owner] + (place < quota[owner] % blocks[owner]).long()
    return torch.where(quota[segment] > 0, block, -1), block_quota


def join_anchors(features: FiniteFeatures, group: Tensor, num_groups: int, is_anchor: Tensor) -> Tensor:
    """[N] int64: the most similar anchor in the group of each token, the earlier on ties; -1 where `group` is -1.

    features: [N, C]. An anchor belongs to itself.
    """
    root = torch.full_like(group, -1)
    # On a CPU large blocks one by one, which lie in one piece of memory; several of unequal length would be copied.
    alone = not group.is_cuda and len(features) * features.channels // num_groups >= _LARGE_BLOCK
    for batch in batches(group, num_groups, features.channels, limit=1 if alone else None):
        nearest = nearest_in_batch(features, batch, is_anchor[batch.index] & batch.valid)
        root[batch.index[batch.valid]] = batch.index.gather(1, nearest)[batch.valid]
    return torch.where(is_anchor, torch.arange(len(root), device=root.device), root)
