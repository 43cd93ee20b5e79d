"""Before the language model: the visual tower, stage 1, query-free methods."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    apply_rotary_pos_emb_vision,
    get_vision_window_index,
)

from vllm_prune.budget import plan_counts
from vllm_prune.config import ATTENTION, NO_METHOD, QUESTION, ImageConfig, PruneConfig
from vllm_prune.methods import VideoTokens, compact, create

from .own_config import looks_at_pixels
from .pixels import encoded_image, merged_cells
from .prompt import Medium
from .squares import encode_square, has_squares


def entering_tokens(
    model: PreTrainedModel, medium: Medium, config: PruneConfig, image: ImageConfig | None = None
) -> VideoTokens:
    """The N1 tokens of a medium that enter the language model. `image`: what is said of all images."""
    width = model.config.text_config.hidden_size
    if has_squares(model):
        return merge(encode_square(model, medium), config, width)
    side = model.config.vision_config.spatial_merge_size
    if image is not None and image.same_within is not None and looks_at_pixels(medium, side, image):
        return select(encoded_image(model, medium, image.same_within), config, width)
    if medium.kind == "video" and config.plans_on_pixels:
        return select(merged_cells(model, medium, config), config, width)
    tokens = encode(model, medium)
    return merge(tokens, config, width, received(model, medium) if config.needs_encoder_attention else None)


def encode(model: PreTrainedModel, medium: Medium) -> VideoTokens:
    """The N tokens [N, (1 + levels) * C] of an unpruned medium."""
    t, h, w = medium.grid_thw
    side = model.config.vision_config.spatial_merge_size
    output = model.model.visual(medium.pixel_values, grid_thw=torch.tensor([medium.grid_thw]))
    features = torch.cat([output.pooler_output, *(getattr(output, "deepstack_features", None) or [])], dim=1)
    return VideoTokens.from_features(features, (t, h // side, w // side))


def received(model: PreTrainedModel, medium: Medium, layer: int = -1) -> torch.Tensor:
    """[N]: the attention that each token receives in a layer of the vision encoder, 1 on average; whole matrices."""
    given: list[Any] = []
    visual = model.model.visual
    attention = visual.blocks[layer].attn
    handle = attention.register_forward_pre_hook(lambda _, args, kwargs: given.append((args, kwargs)), with_kwargs=True)
    grid = torch.tensor([medium.grid_thw])
    visual(medium.pixel_values, grid_thw=grid)
    handle.remove()
    ((args, kwargs),) = given
    hidden = args[0] if args else kwargs["hidden_states"]
    qkv = attention.qkv(hidden).double().reshape(len(hidden), 3, attention.num_heads, -1).permute(1, 0, 2, 3)
    query, key = apply_rotary_pos_emb_vision(qkv[0], qkv[1], *(part.double() for part in kwargs["position_embeddings"]))
    columns = []
    for start, stop in itertools.pairwise(kwargs["cu_seqlens"].tolist()):
        weights = torch.einsum("qhd,khd->hqk", query[start:stop], key[start:stop]) * attention.scaling
        columns.append(weights.softmax(2).mean((0, 1)) * (stop - start))
    config = model.config.vision_config
    side = config.spatial_merge_size
    by_window = torch.cat(columns).view(-1, side**2).mean(1)
    if not hasattr(config, "window_size"):
        return by_window
    order, _ = get_vision_window_index(grid, side, config.window_size, config.patch_size)
    return torch.empty_like(by_window).index_copy(0, order, by_window)


def first_level(tokens: VideoTokens, width: int) -> VideoTokens:
    """What is decided by: the embeddings, without what later layers get."""
    return dataclasses.replace(tokens, features=tokens.features[:, :width])


def merge(tokens: VideoTokens, config: PruneConfig, width: int, attention: torch.Tensor | None = None) -> VideoTokens:
    """N tokens to N1: stage 1, then a query-free method, as far as `config` has them. `attention`: see `received`."""
    counts = plan_counts(config, tokens.num_tokens)
    if config.stage1 is not None:
        own = config.stage1.method == "prunevid"
        stage1 = create(config.stage1.method, **config.stage1.merging() if own else {})
        tokens = compact(tokens, stage1.assign(first_level(tokens, width), counts.stage1))
        if attention is not None:
            raise NotImplementedError("the oracle knows the encoder's attention of unmerged videos only")
    return select(tokens, config, width, attention)


def select(tokens: VideoTokens, config: PruneConfig, width: int, attention: torch.Tensor | None = None) -> VideoTokens:
    """What a query-free method leaves of the tokens that stage 1 has left."""
    if config.method not in (NO_METHOD, ATTENTION, QUESTION):
        method = create(config.method, **config.params)
        count = plan_counts(dataclasses.replace(config, stage1=None), tokens.num_tokens).entering
        given = {} if attention is None else {"relevance": attention}
        seen = tokens if getattr(method, "sees_all_levels", False) else first_level(tokens, width)
        tokens = compact(tokens, method.assign(seen, count, **given))
    return tokens
