"""ToMe, token merging by bipartite soft matching (Bolya et al., ICLR 2023, arXiv:2210.09461), per frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vllm_prune.methods._broken import spare_broken
from vllm_prune.methods._checks import check_budget
from vllm_prune.methods._numerics import invert, rank_descending, to_finite
from vllm_prune.methods._ragged import batches, sizes
from vllm_prune.methods._share import share_budget
from vllm_prune.methods.base import Assignment, VideoTokens, compact


@dataclass(frozen=True, kw_only=True)
class ToMe:
    """Within each frame, alternate tokens form two sets, and the most similar pairs across them merge; repeat.

    Frames share the budget in proportion to their tokens. A round merges at most half of a frame's tokens, so a frame
    takes about log2(tokens / kept) rounds. With fewer slots than frames each frame becomes one token, and those merge
    in the same way. Where it differs from the paper: features, not attention keys, are compared, rounds follow each
    other at once rather than layer by layer, and tokens keep their places from round to round, where the authors' code
    lists those that did not merge first: from the fourth round on other pairs alternate, and clusters differ. A slot
    takes the place of the token the others were merged into.

    Ties keep the earlier token. Tokens with NaN or Inf, and zero vectors, are
    dropped first. Time grows as the sum over frames of n^2.
    """

    name: ClassVar[str] = "tome"
    media: ClassVar[tuple[str, ...]] = ("video", "image")

    def assign(self, tokens: VideoTokens, budget: int) -> Assignment:
        """Exactly `budget` slots; only broken tokens are dropped."""
        check_budget(budget, tokens.num_tokens)
        frame, frames = tokens.grid[:, 0], tokens.grid_thw[0]
        size = sizes(frame, frames)
        enough = int((size > 0).sum()) <= budget
        quota = share_budget(budget, size) if enough else (size > 0).long()
        whole = Assignment.from_roots(spare_broken(*_merge_groups(tokens.features, frame, quota)))
        if enough:
            return whole
        together = torch.zeros_like(whole.anchor)
        root, _ = _merge_groups(compact(tokens, whole).features, together, together.new_tensor([budget]))
        return Assignment.from_roots(torch.where(whole.slot < 0, -1, whole.anchor[root][whole.slot]))


def _merge_groups(features: Tensor, group: Tensor, quota: Tensor) -> tuple[Tensor, Tensor]:
    """The token each was merged into, [N] int64, leaving `quota` [G] of every group; and which are usable, [N] bool."""
    root, usable = torch.empty_like(group), torch.empty_like(group, dtype=torch.bool)
    for batch in batches(group, len(quota), features.shape[1]):
        points, norm = to_finite(features[batch.index].flatten(0, 1))
        into = _merge_batch(points.view(*batch.index.shape, -1), batch.valid.sum(1), quota[batch.group])
        members = batch.index[batch.valid]
        root[members] = batch.index.gather(1, into)[batch.valid]
        usable[members] = norm.view_as(batch.index)[batch.valid] > 0
    return root, usable


def _merge_batch(points: Tensor, count: Tensor, quota: Tensor) -> Tensor:
    """[B, n] int64: the place each member of a group ends up in.

    points: [B, n, C], of which the first `count` [B] of each group are in use; 1 <= quota [B] <= count.
    """
    into = torch.arange(points.shape[1], device=points.device).expand(points.shape[:2])
    alive = into  # which members the rows of `points`, sums of what merged so far, stand for
    more = bool((count > quota).any())
    while more:
        merges = (count - quota).minimum(count // 2)
        source, target = _match(points, count, merges)
        even, odd = alive[:, 0::2], alive[:, 1::2]
        parent = torch.empty_like(into).copy_(torch.arange(into.shape[1], device=into.device))
        parent.scatter_(1, even, torch.where(source, odd.gather(1, target), even))
        into = parent.gather(1, into)
        count = count - merges
        more = bool((count > quota).any())
        if more:
            points, alive = _absorb(points, alive, source, target, int(count.max()))
    return into


def _match(points: Tensor, count: Tensor, merges: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows at even places merge into which rows at odd places of `points` [B, m, C].

    Returns source [B, ceil(m / 2)] bool, True at the `merges` [B] even rows most similar to an odd one, and target, of
    the same shape, the number of that odd row.
    """
    inverse = invert(torch.linalg.vector_norm(points, dim=2))
    in_use = torch.arange(points.shape[1], device=points.device) < count[:, None]
    similarity = points[:, 0::2] @ points[:, 1::2].mT
    similarity.mul_(inverse[:, 0::2, None]).mul_(inverse[:, None, 1::2])
    similarity.masked_fill_(~in_use[:, None, 1::2], -torch.inf)
    target = similarity.argmax(2)
    score = similarity.gather(2, target[:, :, None]).squeeze(2).masked_fill(~in_use[:, 0::2], -torch.inf)
    return rank_descending(score) < merges[:, None], target


def _absorb(points: Tensor, alive: Tensor, source: Tensor, target: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Add the source rows to their targets, and close the gaps they leave; `longest` rows remain at most."""
    odd_rows = torch.arange(points.shape[1] // 2, device=points.device)
    goes_to = source[:, :, None] & (target[:, :, None] == odd_rows)
    points[:, 1::2] += goes_to.to(points.dtype).mT @ points[:, 0::2]
    gone = torch.zeros_like(alive, dtype=torch.uint8)
    gone[:, 0::2] = source
    order = gone.argsort(dim=1, stable=True)[:, :longest]
    return points.gather(1, order[:, :, None].expand(-1, -1, points.shape[2])), alive.gather(1, order)
