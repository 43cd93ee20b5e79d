"""HoliTom's merging before the language model (Shao et al., NeurIPS 2025, arXiv:2505.21334, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vllm_prune.methods._cell_links import cosine_to, follow
from vllm_prune.methods._checks import check_budget, check_integer, check_range, check_unpruned
from vllm_prune.methods._dpc_knn import cluster_groups
from vllm_prune.methods._encoder_scores import encoder_scores, fill_up
from vllm_prune.methods._finite import FiniteFeatures
from vllm_prune.methods._ragged import sizes
from vllm_prune.methods._redundant_segments import cut_redundant, run_lengths
from vllm_prune.methods._share import share_budget
from vllm_prune.methods.base import Assignment, VideoTokens, compact
from vllm_prune.methods.topk import best_in_groups


@dataclass(frozen=True, kw_only=True)
class HoliTom:
    """Cut the video so that most tokens repeat within a segment, merge those over time, then reduce each frame.

    tau: similarity (cosine) to the frame before from which a token repeats it, 0 < tau < 1. k: neighbours of DPC-KNN.

    1. A cell is redundant in a segment if it repeats from frame to frame throughout. Segments are those with most
       redundant tokens in all, found by dynamic programming; none is longer than 64 frames.
    2. Each redundant cell becomes one token, the mean over its segment, at the segment's first frame.
    3. Redundant tokens of a segment are clustered (DPC-KNN); of the others of each frame, those of highest `relevance`
       stay, the attention that each receives in the vision encoder, and the rest is dropped.

    Where it differs from the paper: the count is given, and the segments' redundant tokens and the frames' others share
    it in proportion to their number; where merging over time alone would leave fewer, the least similar redundant cells
    are kept apart. Its merging inside the language model is the method "attention" behind `stage1`. Tokens with NaN or
    Inf and zero vectors come last. Ties keep the earlier token. Time grows as frames * tokens-per-frame^2.
    """

    tau: float = 0.8
    k: int = 7
    name: ClassVar[str] = "holitom"
    no_images: ClassVar[str] = "it merges what stays the same over frames, and a picture is a single frame"
    needs_every_token: ClassVar[bool] = True
    relevance: ClassVar[str] = "encoder"

    def __post_init__(self) -> None:
        check_range("tau", self.tau, 0, 1, open_low=True, open_high=True)
        check_integer("k", self.k, 1)

    def assign(self, tokens: VideoTokens, budget: int, relevance: Tensor | None = None) -> Assignment:
        """Exactly `budget` slots; `relevance` [N], the attention each token receives, is required."""
        check_budget(budget, tokens.num_tokens)
        check_unpruned(tokens.num_tokens, tokens.grid_thw, self.name)
        features = FiniteFeatures(tokens.features)
        norm = features.norm
        score = encoder_scores(relevance, norm, self.name)
        if not bool((norm > 0).any()):
            return Assignment.from_roots(fill_up(torch.full_like(tokens.grid[:, 0], -1), budget), budget)
        frames, frame = tokens.grid_thw[0], tokens.grid[:, 0]
        segment, redundant, parent = self._merge_over_time(features, frames, budget)
        in_time = Assignment.from_roots(torch.where(redundant & (norm > 0), follow(parent), -1))
        others = ~redundant & (norm > 0)
        of_slot, segments = segment[frame[in_time.anchor]], int(segment[-1]) + 1
        size = torch.cat((sizes(of_slot, segments), sizes(torch.where(others, frame, -1), frames)))
        quota = share_budget(size.sum().clamp(max=budget), size)
        root = self._cluster(tokens, in_time, of_slot, quota[:segments])
        usual = score.clamp(
            min=torch.finfo(score.dtype).min
        )  # a relevance of NaN is no reason to take a redundant token
        kept = best_in_groups(usual.masked_fill(~others, -torch.inf), frame, quota[segments:])
        return Assignment.from_roots(fill_up(root.index_copy(0, kept, kept), budget), budget)

    def _cluster(self, tokens: VideoTokens, in_time: Assignment, group: Tensor, quota: Tensor) -> Tensor:
        """[N] int64: the token that each redundant token ends up at, -1 for all others.

        in_time: what was merged over time. group: the segment of each of its slots. quota: of each segment.
        """
        if in_time.num_slots == 0:
            return torch.full_like(in_time.slot, -1)
        merged = FiniteFeatures(compact(tokens, in_time).features)
        root = cluster_groups(merged, torch.where(quota[group] > 0, group, -1), quota, self.k)[in_time.slot]
        return torch.where((in_time.slot >= 0) & (root >= 0), in_time.anchor[root], -1)

    def _merge_over_time(self, features: FiniteFeatures, frames: int, budget: int) -> tuple[Tensor, Tensor, Tensor]:
        """The segment of each frame [T], which tokens are redundant [N] bool, and what each is merged into [N]."""
        norm = features.norm
        index = torch.arange(len(norm), device=norm.device)
        cells = len(norm) // frames
        before = torch.where(index >= cells, index - cells, -1)
        similarity = cosine_to(features, before).view(frames, cells)
        run = run_lengths(similarity > self.tau)
        segment, first, last = cut_redundant(run)
        redundant = (run[last] >= (last - first)[:, None]) & (last > first)[:, None]
        redundant &= ~self._give_back(similarity, segment, first, redundant, int((norm > 0).sum()), budget)
        of_frame = redundant[segment]
        follows = of_frame & (torch.arange(frames, device=norm.device) > first[segment])[:, None]
        return segment, of_frame.flatten(), torch.where(follows.flatten(), before, index)

    def _give_back(
        self, similarity: Tensor, segment: Tensor, first: Tensor, redundant: Tensor, usable: int, budget: int
    ) -> Tensor:
        """[S, H*W] bool: the least similar redundant cells, as many as have to stay apart for `budget` tokens."""
        inside = (torch.arange(len(segment), device=segment.device) > first[segment])[:, None]
        total = torch.zeros_like(redundant, dtype=similarity.dtype).index_add_(0, segment, similarity * inside)
        length = sizes(segment, len(first))
        saved = (redundant * (length - 1)[:, None]).flatten()
        missing = budget - (usable - saved.sum())
        mean = (total / (length - 1).clamp(min=1)[:, None]).masked_fill(~redundant, torch.inf).flatten()
        order = mean.argsort(stable=True)
        returned = torch.zeros_like(redundant.flatten())
        returned[order] = saved[order].cumsum(0) - saved[order] < missing
        return returned.view_as(redundant)
