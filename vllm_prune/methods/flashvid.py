"""FlashVID (Fan et al., ICLR 2026, arXiv:2602.08024): diverse tokens, and trees of tokens that move through time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vllm_prune.methods._broken import spare_broken
from vllm_prune.methods._checks import check_budget, check_integer, check_range, check_relevance, check_unpruned
from vllm_prune.methods._dpc_knn import cluster_groups
from vllm_prune.methods._finite import FiniteFeatures
from vllm_prune.methods._frame_products import FrameProducts, pick_diverse
from vllm_prune.methods._means import average_runs
from vllm_prune.methods._ragged import sizes
from vllm_prune.methods._segments import average_frames
from vllm_prune.methods._share import share_budget
from vllm_prune.methods.base import Assignment, VideoTokens
from vllm_prune.methods.dpp import normalize_relevance
from vllm_prune.methods.fastvid import cut_at_transitions

_NEIGHBOURS = 7


@dataclass(frozen=True, kw_only=True)
class FlashVID:
    """Keep diverse tokens of every frame as they are; link each of the rest to its like in the frame before, and merge.

    diverse_ratio: fraction of the budget that goes to diverse tokens, 0 <= diverse_ratio <= 1.
    link_threshold: cosine similarity that a link needs, -1 <= link_threshold <= 1.
    transition_threshold, min_segments: where the video is cut, as FastVID does; -1 <= transition_threshold <= 1,
        min_segments >= 1.

    1. In each frame diverse tokens are picked one after the other, each as far (1 - cosine) from the picks before as
       can be, weighed by relevance if there is one.
    2. Every remaining token links to the most similar remaining token of the frame before, wherever it has moved, if
       that is in the same segment and similar enough. Segments share what is left of the budget by their remaining
       tokens; where a segment's trees of linked tokens would be fewer than its share, only its strongest links hold.
    3. Where they are more, DPC-KNN clusters the trees that begin in the same frame, by the token each begins with; with
       fewer slots than frames each frame's trees become one, and these are clustered by their means.

    Where it differs from the paper: the count is given; there is no class-token attention, so the first pick of a frame
    is the token most like all of it; 0.1 of the budget is diverse, not 0.7, and a video is cut in 2 at least, not 8:
    both blur real clips less. A merged token is the mean of its members (the authors' code divides the sum of a tree
    by its direct children). Ties keep the earlier token; tokens with NaN or Inf, and
    zero vectors, are dropped first. Time grows as frames * tokens-per-frame^2.
    """

    diverse_ratio: float = 0.1
    link_threshold: float = 0.8
    transition_threshold: float = 0.9
    min_segments: int = 2
    name: ClassVar[str] = "flashvid"
    no_images: ClassVar[str] = "it links each token to one of the frame before, and a picture has none"
    needs_every_token: ClassVar[bool] = True
    relevance: ClassVar[str] = "optional"

    def __post_init__(self) -> None:
        check_range("diverse_ratio", self.diverse_ratio, 0, 1)
        check_range("link_threshold", self.link_threshold, -1, 1)
        check_range("transition_threshold", self.transition_threshold, -1, 1)
        check_integer("min_segments", self.min_segments, 1)

    def assign(self, tokens: VideoTokens, budget: int, relevance: Tensor | None = None) -> Assignment:
        """Exactly `budget` slots; with a diverse_ratio of 1 the rest is dropped."""
        check_budget(budget, tokens.num_tokens)
        check_unpruned(tokens.num_tokens, tokens.grid_thw, self.name)
        check_relevance(relevance, tokens.num_tokens)
        features = FiniteFeatures(tokens.features)
        norm = features.norm
        frames, device = tokens.grid_thw[0], norm.device
        cells = tokens.num_tokens // frames
        diverse = int(self.diverse_ratio * budget)
        quota = share_budget(diverse, torch.full((frames,), cells, device=device))
        weight = None if relevance is None else normalize_relevance(relevance, tokens.num_tokens, norm)
        products = FrameProducts(features, frames)
        is_diverse, similarity, parent = pick_and_link(products, quota, weight)
        own = torch.where(is_diverse, torch.arange(tokens.num_tokens, device=device).view(frames, cells), -1).flatten()
        if diverse == budget:
            return Assignment.from_roots(spare_broken(own, norm > 0), budget)
        merged = budget - diverse
        average = average_frames(features, frames)
        segment = cut_at_transitions(average, self.transition_threshold, self.min_segments, merged)
        root, share = self._grow_trees(similarity, parent, ~is_diverse, segment, merged)
        root = cluster_trees(products, root, segment, share)
        root = torch.where(is_diverse.flatten(), own, root)
        return Assignment.from_roots(spare_broken(root, norm > 0), budget)

    def _grow_trees(
        self, similarity: Tensor, parent: Tensor, rest: Tensor, segment: Tensor, budget: int
    ) -> tuple[Tensor, Tensor]:
        """The root of each token of `rest` [T, H*W], -1 for the others, [N] int64; and each segment's slots, [S]."""
        segment_of = segment[:, None].expand_as(rest)
        inside = torch.cat((segment[:1] < 0, segment.diff() == 0))[:, None]
        linked = inside & (parent >= 0) & (similarity > self.link_threshold)
        left = sizes(torch.where(rest, segment_of, -1).flatten(), int(segment[-1]) + 1)
        share = share_budget(budget, left)
        group = torch.where(linked, segment_of, -1).flatten()
        holds = strongest(similarity.flatten(), group, left - share)
        index = torch.arange(len(group), device=group.device)
        root = follow(torch.where(holds, parent.flatten(), index))
        return torch.where(rest.flatten(), root, -1), share


def pick_and_link(products: FrameProducts, quota: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Diverse tokens of every frame, and the most similar token of the frame before for each of the rest.

    quota: [T] int64, diverse tokens of each frame. weight: [N], as for `pick_diverse`.
    Returns is_diverse [T, H*W] bool, cosine similarity [T, H*W], and parent [T, H*W] int64, the index of a token that
    is not diverse either; -Inf and -1 for diverse tokens and where the frame before has none, or there is none.
    """
    frames, cells = products.norm.shape
    is_diverse = torch.zeros_like(products.norm, dtype=torch.bool)
    similarity = torch.full_like(products.norm, -torch.inf)
    parent = torch.full_like(is_diverse, -1, dtype=torch.int64)
    for piece, product in products.pieces():
        given = None if weight is None else weight.view(frames, cells)[piece]
        is_diverse[piece] = pick_diverse(products, piece, product, quota[piece], given)
        later = slice(max(1, piece.start), piece.stop)
        similarity[later], parent[later] = products.link(piece, is_diverse)
    parent += ((torch.arange(frames, device=parent.device) - 1) * cells)[:, None]
    has_none = is_diverse | (similarity == -torch.inf)
    return is_diverse, similarity.masked_fill_(has_none, -torch.inf), parent.masked_fill_(has_none, -1)


def strongest(score: Tensor, group: Tensor, most: Tensor) -> Tensor:
    """[N] bool: the up to `most` [G] highest of `score` [N] in each group; ties keep the earlier, group -1 has none.

    >>> strongest(torch.tensor([0.1, 0.5, 0.9, 0.7]), torch.tensor([0, 0, -1, 1]), torch.tensor([1, 5])).tolist()
    [False, True, False, True]
    """
    order = score.sort(descending=True, stable=True).indices
    order = order[group[order].sort(stable=True).indices]
    sorted_group = group[order]
    size = sizes(group, len(most))
    first = len(group) - size.sum() + size.cumsum(0) - size
    own = sorted_group.clamp(min=0)
    rank = torch.arange(len(order), device=order.device) - first[own]
    holds = (rank < most[own]) & (sorted_group >= 0)
    return torch.zeros_like(holds).scatter_(0, order, holds)


def follow(parent: Tensor) -> Tensor:
    """[N] int64: where the links of `parent` [N] end; a token without one is its own parent.

    >>> follow(torch.tensor([0, 0, 2, 1])).tolist()
    [0, 0, 2, 0]
    """
    for _ in range(len(parent).bit_length()):
        parent = parent[parent]
    return parent


def cluster_trees(products: FrameProducts, root: Tensor, segment: Tensor, share: Tensor) -> Tensor:
    """[N] int64: the slot's anchor of each token, -1 where `root` [N] is; `share` [S] slots in each segment.

    root: the trees, at least `share` of them in each segment; the tokens they begin with are clustered. segment: [T].
    """
    is_root = (root == torch.arange(len(root), device=root.device)).view(len(segment), -1)
    quota, too_few = share_frames(is_root.sum(1), segment, share)
    centre = products.cluster(is_root, quota, _NEIGHBOURS).flatten()
    root = torch.where(root < 0, -1, centre[root])
    if not bool(too_few.any()):
        return root
    whole = Assignment.from_roots(root)
    owner = segment[whole.anchor // is_root.shape[1]]
    few = too_few[owner].nonzero().squeeze(1)
    again = cluster_groups(_average_slots(products.features, whole, few), owner[few], share, _NEIGHBOURS)
    slot = torch.arange(whole.num_slots, device=root.device).index_copy(0, few, few[again])
    return torch.where(root < 0, -1, whole.anchor[slot][whole.slot])


def _average_slots(features: FiniteFeatures, whole: Assignment, some: Tensor) -> FiniteFeatures:
    """[M, C]: the means of the members of the slots `some` [M], increasing."""
    place = torch.full_like(whole.anchor, -1).index_copy(0, some, torch.arange(len(some), device=some.device))
    of_token = torch.where(whole.slot < 0, -1, place[whole.slot])
    members = of_token.argsort(stable=True)[(of_token < 0).sum() :]
    means = features.norm.new_empty(len(some), features.channels)
    every = torch.arange(len(some), device=some.device)
    average_runs(features, members, sizes(of_token, len(some)), means, every)
    return FiniteFeatures(means)


def share_frames(size: Tensor, segment: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """The slots of each frame [T], and which segments [S] have more frames with trees than slots.

    size: [T] int64, trees of each frame. segment: [T] int64. share: [S] int64, slots of each segment, at most its
    trees. Every frame with trees gets one, and the rest are shared in proportion to its further trees, the fractions
    adding up from frame to frame. In a segment that has not enough, each frame with trees gets just one.

    >>> share_frames(torch.tensor([5, 0, 3, 4]), torch.tensor([0, 0, 0, 1]), torch.tensor([4, 4]))
    (tensor([2, 0, 2, 4]), tensor([False, False]))
    """
    has_trees = (size > 0).long()
    occupied = sizes(torch.where(size > 0, segment, -1), len(share))
    more, total = share - occupied, torch.zeros_like(share).index_add_(0, segment, size - has_trees)
    weight = size - has_trees
    upto = weight.cumsum(0)
    before = (total.cumsum(0) - total)[segment]
    factor, whole = more.clamp(min=0)[segment], total.clamp(min=1)[segment]
    high, low = upto - before, upto - before - weight
    extra = (2 * high * factor + whole) // (2 * whole) - (2 * low * factor + whole) // (2 * whole)
    return has_trees + extra, more < 0
