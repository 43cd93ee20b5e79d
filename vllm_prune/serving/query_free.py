"""What happens to a video's tokens before the language model: stage 1, then a query-free method."""

from __future__ import annotations

import dataclasses

from vllm_prune.budget import TokenCounts
from vllm_prune.config import ATTENTION, NO_METHOD, PruneConfig
from vllm_prune.methods import registry
from vllm_prune.methods.base import Assignment, VideoTokens, compact


def merge_and_select(tokens: VideoTokens, config: PruneConfig, counts: TokenCounts) -> tuple[VideoTokens, Assignment]:
    """The tokens that enter the language model's first layer, exactly `counts.entering` of them, and whence they come."""
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


def _chain(first: Assignment, second: Assignment) -> Assignment:
    """`first`, then `second` on what it left.

    >>> import torch
    >>> kept = [Assignment.from_kept(torch.tensor(kept), n) for kept, n in (([0, 2, 3], 4), ([1, 2], 3))]
    >>> _chain(*kept).slot.tolist(), _chain(*kept).anchor.tolist()
    ([-1, -1, 0, 1], [2, 3])
    """
    slot = second.slot[first.slot].where(first.slot >= 0, first.slot)
    return Assignment(slot, first.anchor[second.anchor])
