"""Conditional DPP (CDPruner: Zhang et al., NeurIPS 2025, arXiv:2506.10967), one per temporal segment.

A determinantal point process prefers sets that are relevant and diverse: the kernel is relevance x cosine similarity x
relevance, and the set of largest determinant is sought greedily. Where it differs from the paper: the video is cut
into segments that share the budget, all of them are solved as one batch, and there are cheaper modes for long ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vllm_prune.methods._checks import check_budget, check_integer, check_quota, check_range, check_relevance
from vllm_prune.methods._greedy_map import append_explained, first_picks, greedy_map, times_vectors
from vllm_prune.methods._kernels import cosine_kernel, sketch
from vllm_prune.methods._ragged import Batch, batches, sizes
from vllm_prune.methods._segments import token_segments
from vllm_prune.methods._share import share_budget
from vllm_prune.methods.base import Assignment, VideoTokens
from vllm_prune.methods.topk import best

_KERNEL_BYTES = 256 << 20  # of the kernels solved together
_LEAST_RELEVANCE = 1e-3
_TRITON_LIMIT = 4096  # tokens of a segment: more do not fit the registers of one program
LONGEST_SEGMENT = 4096
"""Tokens, and at least a frame: whatever the parameters, time and memory grow linearly with the frames."""
_LARGEST_RANK = 256

Mode = Literal["exact", "greedy", "lowrank"]


@dataclass(frozen=True, kw_only=True)
class DPP:
    """Keep the tokens whose kernel has, greedily, the largest determinant in each temporal segment.

    mode: how a segment of n tokens is solved for q of them.
        "exact": greedy MAP on its n x n kernel. Time n^2 C + n min(q, C)^2: C picks explain all others.
        "greedy": the same kernel, but a token is judged by its most similar pick alone. Time n^2 C + n q.
        "lowrank": features projected to `rank` numbers, no kernel, factorisation started afresh every `rank` picks.
            Time n C rank + n q rank, memory n rank.
        "auto": exact up to `exact_limit` tokens, greedy up to `greedy_limit`, lowrank above.
    share: how segments share the budget. "size": in proportion to their tokens. "gain": each next token goes to the
        segment where it adds most; with mode "exact" this is the greedy MAP of the whole video with similarities
        between segments taken as 0.
    temporal_segment_ratio: segments per frame, 0 < temporal_segment_ratio <= 1; 1 makes each frame a segment. A segment
        of more than 4096 tokens is cut between frames.
    exact_limit, greedy_limit: tokens in a segment, 1 <= exact_limit <= greedy_limit < 2**31.
    rank: numbers a token is projected to by "lowrank", 1 <= rank <= 256.

    Of the tokens that add most at first (all of them, without a relevance) the one nearest to its segment's mean is
    picked; the paper leaves this to rounding.

    Deterministic: later ties keep the earlier token. Tokens with NaN or Inf, zero vectors and duplicates come last. On
    a GPU with Triton all picks of a batch of segments are one kernel, unless mode is "lowrank" or a segment has more
    than 4096 tokens.
    """

    mode: Literal["auto", "exact", "greedy", "lowrank"] = "auto"
    share: Literal["size", "gain"] = "size"
    temporal_segment_ratio: float = 1.0
    exact_limit: int = 512
    greedy_limit: int = 2048
    rank: int = 128
    name: ClassVar[str] = "dpp"
    relevance: ClassVar[str] = "optional"

    def __post_init__(self) -> None:
        if self.mode not in ("auto", "exact", "greedy", "lowrank"):
            raise ValueError(f"mode={self.mode!r}; use 'auto', 'exact', 'greedy' or 'lowrank'")
        if self.share not in ("size", "gain"):
            raise ValueError(f"share={self.share!r}; use 'size' or 'gain'")
        check_range("temporal_segment_ratio", self.temporal_segment_ratio, 0, 1, open_low=True)
        check_integer("exact_limit", self.exact_limit, 1)
        check_integer("greedy_limit", self.greedy_limit, self.exact_limit)
        check_integer("rank", self.rank, 1, _LARGEST_RANK)

    def assign(self, tokens: VideoTokens, budget: int, relevance: Tensor | None = None) -> Assignment:
        """Exactly `budget` tokens; `relevance` [N], any scale, higher is better, conditions them on a question."""
        check_budget(budget, tokens.num_tokens)
        check_relevance(relevance, tokens.num_tokens)
        if budget == tokens.num_tokens:
            return Assignment.identity(budget, tokens.features.device)
        segment = token_segments(tokens, self.temporal_segment_ratio, LONGEST_SEGMENT)
        size = sizes(segment, tokens.grid_thw[0])
        quota = share_budget(budget, size) if self.share == "size" else size
        gain, turn = self._rank_tokens(tokens.features, segment, quota, relevance)
        by_turn = turn.argsort(stable=True)
        return Assignment.from_kept(by_turn[best(gain[by_turn], budget)], tokens.num_tokens)

    def rank_tokens(
        self, features: Tensor, segment: Tensor, quota: Tensor, relevance: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What each token adds to its segment's choice of `quota` [S] tokens, less 1, and when it was picked; both [N].

        features: [N, C]. segment: [N] int64, from 0 to S - 1; some may be empty. quota: 0 to the segment's tokens,
        unequal if you like; ValueError otherwise. The gain is -Inf for tokens not chosen; it never rises
        along the picks of a segment, so the highest gains, earlier turns first, are the beginning of each one's picks.
        """
        check_quota(quota, segment)
        return self._rank_tokens(features, segment, quota, relevance)

    def _rank_tokens(
        self, features: Tensor, segment: Tensor, quota: Tensor, relevance: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        weight = normalize_relevance(relevance, len(features), features)
        # The last entry takes what picks beyond a quota say.
        gain, turn = weight.new_full((len(weight) + 1,), -torch.inf), segment.new_zeros(len(segment) + 1)
        limits = (0, self.exact_limit, self.greedy_limit, len(features)) if self.mode == "auto" else (0, len(features))
        modes: tuple[Mode, ...] = ("exact", "greedy", "lowrank") if self.mode == "auto" else (self.mode,)
        size = sizes(segment, len(quota))
        for mode, low, high in zip(modes, limits, limits[1:], strict=False):
            mine = ((size > low) & (size <= high) & (quota > 0))[segment]
            width = self.rank if mode == "lowrank" else 1
            for batch in batches(torch.where(mine, segment, -1), len(quota), width, _KERNEL_BYTES):
                mine_quota = quota[batch.group]
                steps = int(mine_quota.max())
                own_weight = weight[batch.index]
                # Cosines of C numbers have a rank of C: what comes after as many picks adds nothing.
                some = min(steps, features.shape[1]) if mode == "exact" else steps
                picks, gains = self._pick(mode, features, own_weight, batch, some)
                if some < steps:
                    picks, gains = append_explained(picks, gains, own_weight, batch.valid, steps)
                step = torch.arange(picks.shape[1], device=picks.device).expand_as(picks)
                chosen = step < mine_quota[:, None]
                token = torch.where(chosen, batch.index.gather(1, picks), len(segment)).flatten()
                gain.scatter_(0, token, gains.cummin(1).values.flatten())
                turn.scatter_(0, token, step.flatten())
        return gain[:-1], turn[:-1]

    def _pick(self, mode: Mode, features: Tensor, weight: Tensor, batch: Batch, steps: int) -> tuple[Tensor, Tensor]:
        """Picks and gains, each [B, steps], of `mode` in the segments of a batch; see `greedy_map`."""
        each = torch.arange(len(weight), device=weight.device) * weight.shape[1]
        if mode == "lowrank":
            points = sketch(features, batch, self.rank)
            diagonal = points.any(2).to(points.dtype)  # exactly 1, so that equal tokens tie
            likeness = times_vectors(points, points.sum(1))
            memory = points.shape[2]
        else:
            kernel = cosine_kernel(features, batch)
            diagonal = kernel.diagonal(dim1=1, dim2=2)
            likeness = kernel.sum(2)
            memory = steps if mode == "exact" else 0
        first = first_picks(likeness, diagonal, weight, batch.valid)
        if mode != "lowrank" and fits_triton(kernel):
            from vllm_prune.methods import _greedy_map_triton  # needs Triton, which CPU builds of PyTorch lack

            return _greedy_map_triton.greedy_map(kernel, weight, batch.valid, steps, first, exact=mode == "exact")

        def rows(pick: Tensor) -> Tensor:
            row = (points if mode == "lowrank" else kernel).flatten(0, 1).index_select(0, each + pick)
            return times_vectors(points, row) if mode == "lowrank" else row

        return greedy_map(rows, diagonal, weight, batch.valid, steps, memory, first)


def fits_triton(kernel: Tensor) -> bool:
    """Whether the picks from `kernel` [S, n, n] are made by one kernel on the GPU instead of some launches a pick."""
    return kernel.is_cuda and kernel.shape[2] <= _TRITON_LIMIT and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


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
