"""Conditional DPP (CDPruner: Zhang et al., NeurIPS 2025, arXiv:2506.10967), over a video, its segments or its frames.

A determinantal point process prefers sets that are relevant and diverse: the kernel is relevance x cosine similarity x
relevance, and the set of largest determinant is sought greedily. Where it differs from the paper, which has images:
a video may be one set, or one for each segment or frame, then solved as a batch; and there are cheaper modes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vllm_prune.methods._candidates import count_candidates, tile, tile_quotas
from vllm_prune.methods._checks import check_budget, check_integer, check_quota, check_range, check_relevance
from vllm_prune.methods._greedy_map import (
    append_explained,
    first_picks,
    greedy_map,
    has_triton,
    map_kernel,
    put_broken_last,
    times_vectors,
)
from vllm_prune.methods._greedy_map_blocks import greedy_map_by_blocks
from vllm_prune.methods._kernels import cosine_kernel, sketch
from vllm_prune.methods._numerics import invert, to_finite
from vllm_prune.methods._ragged import Batch, batches, sizes
from vllm_prune.methods._segments import cut_long, token_segments
from vllm_prune.methods._share import share_budget
from vllm_prune.methods.base import Assignment, VideoTokens
from vllm_prune.methods.topk import best, best_in_groups

_KERNEL_BYTES = 256 << 20  # of the kernels solved together
_KERNEL_LIMIT = 512  # tokens of a segment: the kernel of a longer one costs more than the rows that are needed
_KERNEL_LIMIT_TRITON = 2048  # where the kernels of all segments are picked from at once
_LEAST_RELEVANCE = 1e-3
LONGEST_SEGMENT = 4096
"""Tokens, and at least a frame: whatever the parameters, time and memory grow linearly with the frames."""
LONGEST_VIDEO = 16384
"""Tokens, and at least a frame: a longer video is cut into parts with scope "video"."""
MOST_PICKS = 768
"""Tokens kept of a part of a video with scope "video", about: where more are kept, the parts are shorter."""
_LARGEST_RANK = 256


@dataclass(frozen=True, kw_only=True)
class DPP:
    """Keep the tokens whose kernel has, greedily, the largest determinant.

    scope: what is one set, and shares the budget: the "video", each "segment" or each "frame". With "video" more than
        4096 tokens are first cut down to candidates, half as many again as are kept and at least 1024: those that add
        most to their tile of 16 frames by 2 x 4 cells. More than 16384 tokens, or 768 kept, are cut between frames
        into parts that share the budget in proportion to their tokens.
    mode: how a set of n tokens is solved for q of them.
        "exact": greedy MAP. Time n C q + n q^2, at least n^2 C up to 512 tokens; C picks explain all others.
        "greedy": on the n x n kernel, but a token is judged by its most similar pick alone. Time n^2 C + n q.
        "lowrank": features projected to `rank` numbers, no kernel, factorisation started afresh every `rank` picks.
            Time n C rank + n q rank, memory n rank. Cosines are off by 1 / sqrt(rank) (standard deviation, at most).
    share: how segments or frames share the budget. "size": in proportion to their tokens. "gain": each next token goes
        to the one where it adds most; with mode "exact" this is the greedy MAP of the whole video with similarities
        between them taken as 0.
    temporal_segment_ratio: segments per frame, 0 < temporal_segment_ratio <= 1, for scope "segment". A segment of more
        than 4096 tokens is cut between frames.
    rank: numbers a token is projected to by "lowrank", 1 <= rank <= 256.

    Of the tokens that add most at first (all of them, without a relevance) the one nearest to the mean of its set is
    picked; the paper leaves this to rounding.

    Deterministic: later ties keep the earlier token. What picks explain comes after all that they do not: duplicates
    ("lowrank": until it starts afresh), and everything once as many tokens are picked as there are channels, then the
    duplicates last. Tokens with NaN or Inf, and zero vectors, come after those. On a GPU with Triton all picks of a
    batch of sets of up to 2048 tokens (with "greedy" 4096) are one kernel.
    """

    scope: Literal["video", "segment", "frame"] = "video"
    mode: Literal["exact", "greedy", "lowrank"] = "exact"
    share: Literal["size", "gain"] = "size"
    temporal_segment_ratio: float = 0.25
    rank: int = 128
    name: ClassVar[str] = "dpp"
    media: ClassVar[tuple[str, ...]] = ("video", "image")
    relevance: ClassVar[str] = "optional"

    def __post_init__(self) -> None:
        if self.scope not in ("video", "segment", "frame"):
            raise ValueError(f"scope={self.scope!r}; use 'video', 'segment' or 'frame'")
        if self.mode not in ("exact", "greedy", "lowrank"):
            raise ValueError(f"mode={self.mode!r}; use 'exact', 'greedy' or 'lowrank'")
        if self.share not in ("size", "gain"):
            raise ValueError(f"share={self.share!r}; use 'size' or 'gain'")
        check_range("temporal_segment_ratio", self.temporal_segment_ratio, 0, 1, open_low=True)
        check_integer("rank", self.rank, 1, _LARGEST_RANK)

    def assign(self, tokens: VideoTokens, budget: int, relevance: Tensor | None = None) -> Assignment:
        """Exactly `budget` tokens; `relevance` [N], any scale, higher is better, conditions them on a question."""
        check_budget(budget, tokens.num_tokens)
        check_relevance(relevance, tokens.num_tokens)
        return self.assign_weighted(tokens, budget, normalize_relevance(relevance, tokens.num_tokens, tokens.features))

    def assign_weighted(self, tokens: VideoTokens, budget: int, weight: Tensor) -> Assignment:
        """Exactly `budget` tokens; `weight` [N] in (0, 1] is the squared relevance, as it is to enter the kernel."""
        if budget == tokens.num_tokens:
            return Assignment.identity(budget, tokens.features.device)
        segment = self._segments(tokens, budget)
        size = sizes(segment, tokens.grid_thw[0])
        quota = share_budget(budget, size)
        among = self._candidates(tokens, segment, quota, weight)
        if among is not None:
            features, segment, weight = tokens.features[among], segment[among], weight[among]
        else:
            features = tokens.features
        if self.share == "gain" and self.scope != "video":
            quota = size.clamp(max=budget)
        gain, turn = self._rank(features, segment, quota, weight)
        by_turn = turn.argsort(stable=True)
        kept = by_turn[best(gain[by_turn], budget)]
        return Assignment.from_kept(kept if among is None else among[kept], tokens.num_tokens)

    def _segments(self, tokens: VideoTokens, budget: int) -> Tensor:
        """[N] int64: what each token is compared with, below T."""
        if self.scope != "video":
            ratio = 1.0 if self.scope == "frame" else self.temporal_segment_ratio
            return token_segments(tokens, ratio, LONGEST_SEGMENT)
        longest = LONGEST_SEGMENT
        if self.mode == "exact":
            longest = max(1, min(LONGEST_VIDEO, MOST_PICKS * tokens.num_tokens // budget))
        frame, frames = tokens.grid[:, 0], tokens.grid_thw[0]
        whole = torch.zeros(frames, dtype=torch.int64, device=frame.device)
        return cut_long(whole, sizes(frame, frames), longest)[frame]

    def _candidates(self, tokens: VideoTokens, segment: Tensor, quota: Tensor, weight: Tensor) -> Tensor | None:
        """[M] int64, increasing: the tokens to choose from; None for all of them."""
        if self.scope != "video" or self.mode != "exact" or tokens.num_tokens <= LONGEST_SEGMENT:
            return None
        wanted = count_candidates(quota, sizes(segment, len(quota)))
        tile_of = tile(tokens, segment)
        gain, _ = self._rank(tokens.features, tile_of, tile_quotas(tile_of, segment, wanted), weight)
        return best_in_groups(gain, segment, wanted)

    def rank_tokens(
        self, features: Tensor, segment: Tensor, quota: Tensor, relevance: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What each token adds to its segment's choice of `quota` [S] tokens, less 1, and when it was picked; both [N].

        features: [N, C]. segment: [N] int64, from 0 to S - 1; some may be empty. quota: 0 to the segment's tokens,
        unequal if you like; ValueError otherwise. The gain is -Inf for tokens not chosen; it never rises
        along the picks of a segment, so the highest gains, earlier turns first, are the beginning of each one's picks.
        """
        check_quota(quota, segment)
        return self._rank(features, segment, quota, normalize_relevance(relevance, len(features), features))

    def _rank(self, features: Tensor, segment: Tensor, quota: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """As `rank_tokens`, with squared relevance `weight` [N] in (0, 1]."""
        # The last entry takes what picks beyond a quota say.
        gain, turn = weight.new_full((len(weight) + 1,), -torch.inf), segment.new_zeros(len(segment) + 1)
        for index, picks, gains, mine in self._solve(features, segment, quota, weight):
            step = torch.arange(picks.shape[1], device=picks.device).expand_as(picks)
            token = torch.where(step < mine[:, None], index.gather(1, picks), len(segment)).flatten()
            gain.scatter_(0, token, gains.cummin(1).values.flatten())
            turn.scatter_(0, token, step.flatten())
        return gain[:-1], turn[:-1]

    def _solve(
        self, features: Tensor, segment: Tensor, quota: Tensor, weight: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Members [B, n], picks and gains [B, q], and how many picks count [B], of some segments at a time."""
        size = sizes(segment, len(quota))
        limit = _KERNEL_LIMIT_TRITON if features.is_cuda and has_triton() else _KERNEL_LIMIT
        is_long = (size > limit) & (self.mode == "exact")
        width = self.rank if self.mode == "lowrank" else 1
        short = torch.where(((quota > 0) & ~is_long)[segment], segment, -1)
        for batch in batches(short, len(quota), width, _KERNEL_BYTES):
            mine = quota[batch.group]
            yield batch.index, *self._pick(features, weight[batch.index], batch, int(mine.max())), mine
        long = torch.where(((quota > 0) & is_long)[segment], segment, -1)
        for batch in batches(long, len(quota), 1, 1):
            mine = quota[batch.group]
            points, norm = to_finite(batch.take(features)[0])
            found = greedy_map_by_blocks(points, invert(norm), weight[batch.index[0]], int(mine))
            yield batch.index, found[0][None], found[1][None], mine

    def _pick(self, features: Tensor, weight: Tensor, batch: Batch, steps: int) -> tuple[Tensor, Tensor]:
        """Picks and gains, each [B, steps], in the segments of a batch; see `greedy_map`."""
        if self.mode == "lowrank":
            return self._pick_lowrank(features, weight, batch, steps)
        kernel = cosine_kernel(features, batch)
        explained = 1 - kernel.diagonal(dim1=1, dim2=2)
        weight = put_broken_last(weight, explained > 0)
        first = first_picks(kernel.sum(2), explained, weight, batch.valid)
        exact = self.mode == "exact"
        # Cosines of C numbers have a rank of C: what comes after as many picks adds nothing.
        some = min(steps, features.shape[1]) if exact else steps
        picks, gains = map_kernel(kernel, explained, weight, batch.valid, some, first, exact)
        if some == steps:
            return picks, gains
        points, norm = to_finite(batch.take(features).flatten(0, 1))
        units = (points * invert(norm)[:, None]).view(*batch.index.shape, -1)
        return append_explained(picks, gains, weight, batch.valid, steps, units)

    def _pick_lowrank(self, features: Tensor, weight: Tensor, batch: Batch, steps: int) -> tuple[Tensor, Tensor]:
        points = sketch(features, batch, self.rank)
        explained = 1 - points.any(2).to(points.dtype)  # exactly 0, so that equal tokens tie
        weight = put_broken_last(weight, explained > 0)
        first = first_picks(times_vectors(points, points.sum(1)), explained, weight, batch.valid)
        each = torch.arange(len(weight), device=weight.device) * weight.shape[1]

        def rows(pick: Tensor) -> Tensor:
            return times_vectors(points, points.flatten(0, 1).index_select(0, each + pick))

        return greedy_map(rows, explained, weight, batch.valid, steps, points.shape[2], first)


def normalize_relevance(relevance: Tensor | None, num_tokens: int, like: Tensor) -> Tensor:
    """[N] squared relevance in (0, 1], on the device of `like` and in its dtype, at least float32.

    Relevance is stretched to [1e-3, 1] over the video. NaN counts as the least, infinities as the nearest finite one.
    """
    wide = torch.promote_types(like.dtype, torch.float32)
    if relevance is None:
        return torch.ones(num_tokens, dtype=wide, device=like.device)
    relevance = relevance.to(like.device, wide)
    finite = relevance.isfinite()
    low = relevance.masked_fill(~finite, torch.inf).amin()
    high = relevance.masked_fill(~finite, -torch.inf).amax()
    span = torch.where(high > low, high - low, 1)
    place = torch.where(relevance.isnan(), low, relevance).clamp(low, high)
    place = torch.where(high > low, (place - low) / span, 1)
    return (_LEAST_RELEVANCE + (1 - _LEAST_RELEVANCE) * place).square()
