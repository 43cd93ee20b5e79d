"""Before the language model: the visual tower, stage 1, query-free methods."""

from __future__ import annotations

import dataclasses

import torch
from transformers import PreTrainedModel

from vllm_prune.budget import plan_counts
from vllm_prune.config import ATTENTION, NO_METHOD, PruneConfig
from vllm_prune.methods import VideoTokens, compact, create

from .pixels import merged_cells
from .prompt import Medium


def entering_tokens(model: PreTrainedModel, medium: Medium, config: PruneConfig) -> VideoTokens:
    """The N1 tokens of a medium that enter the language model; images keep all of theirs."""
    if medium.kind == "video" and config.plans_on_pixels:
        return select(merged_cells(model, medium, config), config)
    tokens = encode(model, medium)
    return merge(tokens, config) if medium.kind == "video" else tokens


def encode(model: PreTrainedModel, medium: Medium) -> VideoTokens:
    """The N tokens [N, C] of an unpruned medium."""
    t, h, w = medium.grid_thw
    side = model.config.vision_config.spatial_merge_size
    features = model.model.visual(medium.pixel_values, grid_thw=torch.tensor([medium.grid_thw])).pooler_output
    return VideoTokens.from_features(features, (t, h // side, w // side))


def merge(tokens: VideoTokens, config: PruneConfig) -> VideoTokens:
    """N tokens to N1: stage 1, then a query-free method, as far as `config` has them."""
    counts = plan_counts(config, tokens.num_tokens)
    if config.stage1 is not None:
        own = config.stage1.method == "prunevid"
        stage1 = create(config.stage1.method, **config.stage1.merging() if own else {})
        tokens = compact(tokens, stage1.assign(tokens, counts.stage1))
    return select(tokens, config)


def select(tokens: VideoTokens, config: PruneConfig) -> VideoTokens:
    """What a query-free method leaves of the tokens that stage 1 has left."""
    if config.method not in (NO_METHOD, ATTENTION):
        method = create(config.method, **config.params)
        count = plan_counts(dataclasses.replace(config, stage1=None), tokens.num_tokens).entering
        tokens = compact(tokens, method.assign(tokens, count))
    return tokens
