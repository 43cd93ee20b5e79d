"""What happens to a video's tokens before the language model: stage 1, then a query-free method."""

from __future__ import annotations

import dataclasses

import torch

from vllm_prune.budget import TokenCounts
from vllm_prune.config import ATTENTION, NO_METHOD, PruneConfig
from vllm_prune.methods import registry
from vllm_prune.methods.base import Assignment, VideoTokens, compact
from vllm_prune.methods.prunevid import PruneVid


def merge_and_select(tokens: VideoTokens, config: PruneConfig, counts: TokenCounts) -> tuple[VideoTokens, Assignment]:
    """The tokens that enter the language model's first layer, `counts.entering` of them, and where they come from."""
    assignment = Assignment.identity(tokens.num_tokens, tokens.features.device)
    if config.stage1 is not None:
        stage1 = registry.create("prunevid", **dataclasses.asdict(config.stage1))
        assignment = stage1.assign(tokens, counts.stage1)
        tokens = compact(tokens, assignment)
    if config.method not in (NO_METHOD, ATTENTION):
        chosen = registry.create(config.method, **config.params).assign(tokens, counts.entering)
        tokens, assignment = compact(tokens, chosen), _chain(assignment, chosen)
    if tokens.num_tokens != counts.entering:
        raise RuntimeError(
            f"method {config.method!r} left {tokens.num_tokens} tokens of {counts.total} where "
            f"{counts.entering} were asked for"
        )
    return tokens, assignment


def temporal_segments(tokens: VideoTokens, config: PruneConfig) -> torch.Tensor | None:
    """[t], the segment that stage 1 puts each step of the grid of an unpruned video in; None without stage 1."""
    if config.stage1 is None:
        return None
    return PruneVid(**dataclasses.asdict(config.stage1)).plan(tokens).segment


def competing_groups(tokens: VideoTokens, config: PruneConfig, assignment: Assignment) -> torch.Tensor:
    """The group of each token that enters the language model, [N1]: all 0, unless segments have quotas of their own.

    With quotas, twice the segment of its anchor, plus 1 where stage 1 found the anchor's cell static in that segment.
    """
    anchor = assignment.anchor
    if config.method != ATTENTION or config.attention_param("quota") != "segment":
        return torch.zeros_like(anchor)
    assert config.stage1 is not None  # PruneConfig sees to it
    plan = PruneVid(**dataclasses.asdict(config.stage1)).plan(tokens)
    frame, cell = anchor // plan.static.shape[1], anchor % plan.static.shape[1]
    segment = plan.segment[frame]
    return 2 * segment + plan.static[segment, cell].long()


def _chain(first: Assignment, second: Assignment) -> Assignment:
    """`first`, then `second` on what it left.

    >>> kept = [Assignment.from_kept(torch.tensor(kept), n) for kept, n in (([0, 2, 3], 4), ([1, 2], 3))]
    >>> _chain(*kept).slot.tolist(), _chain(*kept).anchor.tolist()
    ([-1, -1, 0, 1], [2, 3])
    """
    slot = second.slot[first.slot].where(first.slot >= 0, first.slot)
    return Assignment(slot, first.anchor[second.anchor])
