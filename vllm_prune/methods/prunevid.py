"""PruneVid, stage 1: spatial-temporal merging (Huang et al., Findings of ACL 2025, arXiv:2412.16117).

Written from the paper's description. Where it differs: the number of tokens that come out is given, so cluster counts
are fitted to it; nothing is random (the usual DPC-KNN breaks ties with noise); clusters live in logarithms (_dpc_knn).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from vllm_prune.methods._broken import spare_broken
from vllm_prune.methods._checks import check_budget, check_integer, check_range, check_unpruned
from vllm_prune.methods._dpc_knn import cluster_groups
from vllm_prune.methods._finite import FiniteFeatures
from vllm_prune.methods._prunevid_plan import CellMeans, Measure, PruneVidPlan, make_plan, measure
from vllm_prune.methods._share import share_budget
from vllm_prune.methods.base import Assignment, VideoTokens, compact


@dataclass(frozen=True, kw_only=True)
class PruneVid:
    """Merge over time what does not change, then merge in space what is alike.

    1. Frames form contiguous segments: DPC-KNN over frame means. Neighbours that stand still as one (nine of ten cells
       static, and as similar across the cut as within) are one.
    2. A grid cell whose features agree over a segment's frames is static: averaged over time to one token.
    3. DPC-KNN merges the static tokens of each segment, and the dynamic tokens of each frame, to a share of them.

    tau: mean pairwise cosine similarity above which a cell is static, 0 < tau < 1 (the paper uses 0.7-0.9).
    cluster_ratio: fraction of a group's tokens that stay as clusters, 0 < cluster_ratio <= 1.
    temporal_segment_ratio: segments per frame at the most, 0 < temporal_segment_ratio <= 1.
    k: neighbours that density is measured on, the token itself included, >= 1.
    keep_small: groups of up to this many tokens stay whole when the budget covers the natural one, >= 0.

    Tokens with NaN or Inf, and zero vectors, resemble nothing and are dropped first.
    """

    tau: float = 0.8
    cluster_ratio: float = 0.5
    temporal_segment_ratio: float = 0.25
    k: int = 7
    keep_small: int = 14
    name: ClassVar[str] = "prunevid"
    media: ClassVar[tuple[str, ...]] = ("video", "image")
    image_params: ClassVar[Mapping[str, float]] = MappingProxyType({"temporal_segment_ratio": 1.0})
    """Where an image has frames, these are its tiles: places side by side, each a segment of its own."""
    needs_every_token: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("tau", self.tau, 0, 1, open_low=True, open_high=True)
        check_range("cluster_ratio", self.cluster_ratio, 0, 1, open_low=True)
        check_range("temporal_segment_ratio", self.temporal_segment_ratio, 0, 1, open_low=True)
        check_integer("k", self.k, 1)
        check_integer("keep_small", self.keep_small, 0)

    def plan(self, tokens: VideoTokens) -> PruneVidPlan:
        """Segments and static cells, before any budget."""
        measured = self._measure(tokens)
        return make_plan(measured, measured.similarity > self.tau)

    def natural_budget(self, tokens: VideoTokens) -> int:
        """The number of tokens the paper's rule would leave."""
        return max(1, int(self._natural_sizes(self.plan(tokens).group_sizes).sum()))

    def assign(self, tokens: VideoTokens, budget: int) -> Assignment:
        """Exactly `budget` slots.

        More than time merging leaves: static cells, least similar first, stay dynamic. Fewer: groups share the budget
        in proportion to size, small ones whole if `keep_small` allows. Fewer than groups: each group becomes one token,
        and DPC-KNN merges those. A slot's anchor is the centre of its cluster, for a static cell its first frame.
        """
        check_budget(budget, tokens.num_tokens)
        if budget == tokens.num_tokens:
            return Assignment.identity(budget, tokens.features.device)
        measured = self._measure(tokens)
        plan = make_plan(measured, self._choose_static(measured, budget))
        has_tokens = plan.group_sizes > 0
        groups, num_static = torch.stack((has_tokens.sum(), plan.static.sum())).tolist()  # one wait for the device
        if budget >= groups:
            root = self._merge_in_space(measured, plan, self._share(plan.group_sizes, budget), num_static > 0)
            return Assignment.from_roots(spare_broken(root, measured.usable), budget)
        root = self._merge_in_space(measured, plan, has_tokens.long(), num_static > 0)
        whole = Assignment.from_roots(spare_broken(root, measured.usable), groups)
        return self._merge_groups(tokens, whole, budget)

    def _measure(self, tokens: VideoTokens) -> Measure:
        check_unpruned(tokens.num_tokens, tokens.grid_thw, self.name)
        segments = max(1, round(self.temporal_segment_ratio * tokens.grid_thw[0]))
        return measure(tokens, segments, self.k, self.tau)

    def _choose_static(self, measured: Measure, budget: int) -> Tensor:
        """[S, H*W] bool: cells above tau, less the least similar of them until `budget` tokens remain."""
        static = measured.similarity > self.tau
        saved = static * (measured.segment_length[:, None] - 1)
        missing = budget - (len(measured.features) - saved.sum())
        similarity = measured.similarity.masked_fill(~static, torch.inf).flatten()
        order = similarity.argsort(stable=True)
        given_back = saved.flatten()[order]
        reverted = torch.zeros_like(static.flatten())
        reverted[order] = given_back.cumsum(0) - given_back < missing
        return static & ~reverted.view_as(static)

    def _natural_sizes(self, size: Tensor) -> Tensor:
        return torch.where(size <= self.keep_small, size, (size.double() * self.cluster_ratio).long())

    def _share(self, size: Tensor, budget: int) -> Tensor:
        """[G] int64: the clusters of each group."""
        natural = self._natural_sizes(size).maximum((size > 0).long())
        small = size * (size <= self.keep_small)
        whole = torch.where(natural.sum() <= budget, small, 0)
        return whole + share_budget(budget - whole.sum(), size - whole)

    def _merge_in_space(self, measured: Measure, plan: PruneVidPlan, quota: Tensor, any_static: bool) -> Tensor:
        """[N] int64: the token that each token ends up at."""
        segments, cells = plan.static.shape
        frame_group = (plan.group - segments).clamp(min=-1)
        root = cluster_groups(measured.features, frame_group, quota[segments:], self.k)
        if any_static:
            is_static = plan.static[plan.segment]
            static_root = self._merge_static(measured, plan, quota[:segments])[plan.segment]
            root = torch.where(is_static, static_root, root.view(-1, cells)).flatten()
        return root

    def _merge_static(self, measured: Measure, plan: PruneVidPlan, quota: Tensor) -> Tensor:
        """[S, H*W] int64: the token that each static cell ends up at, in the first frame of its segment."""
        segments, cells = plan.static.shape
        group = torch.where(plan.static, torch.arange(segments, device=quota.device)[:, None], -1)
        root = cluster_groups(CellMeans(measured), group.flatten(), quota, self.k)
        return measured.first_frame[:, None] * cells + root.view(segments, cells) % cells

    def _merge_groups(self, tokens: VideoTokens, whole: Assignment, budget: int) -> Assignment:
        """Merge the slots of `whole`, one per group, to `budget` of them."""
        features = FiniteFeatures(compact(tokens, whole).features)
        together = torch.zeros_like(whole.anchor)
        centre = cluster_groups(features, together, together.new_full((1,), budget), self.k)
        return Assignment.from_roots(torch.where(whole.slot < 0, -1, whole.anchor[centre][whole.slot]), budget)
