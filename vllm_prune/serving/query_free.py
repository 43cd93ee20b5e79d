"""What happens to a video's tokens before the language model: stage 1, then a query-free method."""

from __future__ import annotations

import dataclasses

from vllm_prune.budget import TokenCounts
from vllm_prune.config import ATTENTION, NO_METHOD, PruneConfig
from vllm_prune.methods import registry
from vllm_prune.methods.base import VideoTokens, compact


def merge_and_select(tokens: VideoTokens, config: PruneConfig, counts: TokenCounts) -> VideoTokens:
    """The tokens that enter the language model's first layer, exactly `counts.entering` of them."""
    if config.stage1 is not None:
        stage1 = registry.create("prunevid", **dataclasses.asdict(config.stage1))
        tokens = compact(tokens, stage1.assign(tokens, counts.stage1))
    if config.method not in (NO_METHOD, ATTENTION):
        method = registry.create(config.method, **config.params)
        tokens = compact(tokens, method.assign(tokens, counts.entering))
    if len(tokens.features) != counts.entering:
        raise RuntimeError(
            f"method {config.method!r} left {len(tokens.features)} tokens of {counts.total} where "
            f"{counts.entering} were asked for"
        )
    return tokens

