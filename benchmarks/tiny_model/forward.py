"""A forward pass for training over Hugging Face's own modules, in static shapes that compile well.

Same arithmetic as Qwen2.5-VL's and Qwen3-VL's; only the bookkeeping for clips of varying size is gone: every clip is
112 x 112, so windows and frames are plain batch dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

PATCH, MERGE, PAIR = 14, 2, 2
GRID = 4  # merged tokens a side
UNIT = MERGE * MERGE  # patches of a merged token
WINDOWS = 4  # windows of 2 x 2 merged tokens in a frame
FRAME_PATCHES = GRID * GRID * UNIT


def _window_order() -> Tensor:
    """Raster indices ``[16]`` of merged tokens, window by window."""
    cells = torch.arange(GRID * GRID).view(WINDOWS // 2, 2, WINDOWS // 2, 2)
    return cells.permute(0, 2, 1, 3).reshape(-1)


WINDOW_ORDER = _window_order()
RASTER_ORDER = torch.argsort(WINDOW_ORDER)


def patchify(frames: Tensor) -> Tensor:
    """Normalised patches ``[B * T/2, 16, 4, 1176]`` of uint8 ``[B, T, 112, 112, 3]``.

    The 16 merged tokens of a pair of frames come window by window, each with its 4 patches.
    """
    mean, std = torch.tensor(OPENAI_CLIP_MEAN) * 255, torch.tensor(OPENAI_CLIP_STD) * 255
    pixels = ((frames - mean) / std).bfloat16()
    pairs = frames.shape[0] * frames.shape[1] // PAIR
    pixels = pixels.view(pairs, PAIR, GRID, MERGE, PATCH, GRID, MERGE, PATCH, 3)
    patches = pixels.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(pairs, GRID * GRID, UNIT, -1)
    return patches[:, WINDOW_ORDER]


def patch_places() -> Tensor:
    """Row and column ``[64, 2]`` of a frame's patches in window order."""
    cells = WINDOW_ORDER[:, None]
    inside = torch.arange(UNIT)[None]
    rows = (cells // GRID) * MERGE + inside // MERGE
    columns = (cells % GRID) * MERGE + inside % MERGE
    return torch.stack([rows.reshape(-1), columns.reshape(-1)], dim=-1)


def vision_rotary(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """cos and sin ``[64, head_dim]`` of a frame's patches in window order."""
    return model.model.visual.rotary_pos_emb(torch.zeros(1), patch_places())


def _vision_attention(
    attention: torch.nn.Module, hidden: Tensor, rotary: tuple[Tensor, Tensor], windowed: bool
) -> Tensor:
    """Self-attention of ``hidden [frames, 64, C]`` within frames or within windows of 16 patches."""
    frames, patches, width = hidden.shape
    query, key, value = attention.qkv(hidden).view(frames, patches, 3, attention.num_heads, -1).unbind(2)
    query, key = apply_rotary_pos_emb_vision(query, key, *rotary)
    span = patches // WINDOWS if windowed else patches
    query, key, value = (
        x.reshape(-1, span, attention.num_heads, x.shape[-1]).transpose(1, 2) for x in (query, key, value)
    )
    # Plain matrix products: the backward pass of the fused CPU kernel takes several times longer at these sizes.
    scores = (query @ key.transpose(-1, -2)) * attention.scaling
    mixed = scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
    return attention.proj(mixed.transpose(1, 2).reshape(frames, patches, width))


def encode_video(model: PreTrainedModel, patches: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Merged vision tokens ``[B * T/2, 16, (1 + levels) * C]`` in raster order from ``patchify``'s patches.

    Behind the C columns that enter the language model come those that deepstack adds to its layers.
    """
    visual = model.model.visual
    hidden = _embed_patches(visual, patches.flatten(1, 2))
    whole_frames = getattr(visual, "fullatt_block_indexes", range(len(visual.blocks)))
    deepstack = getattr(visual, "deepstack_visual_indexes", ())
    levels = []
    for index, block in enumerate(visual.blocks):
        hidden = hidden + _vision_attention(block.attn, block.norm1(hidden), rotary, index not in whole_frames)
        hidden = hidden + block.mlp(block.norm2(hidden))
        if index in deepstack:
            levels.append(visual.deepstack_merger_list[deepstack.index(index)](hidden))
    merged = torch.cat([visual.merger(hidden), *levels], dim=-1)
    return merged.view(patches.shape[0], GRID * GRID, -1)[:, RASTER_ORDER]


def _embed_patches(visual: torch.nn.Module, patches: Tensor) -> Tensor:
    """Hidden states ``[frames, 64, C]``; Qwen3-VL adds a learned one for each place of its 8 x 8 grid."""
    projection = visual.patch_embed.proj
    hidden = F.linear(patches, projection.weight.flatten(1), projection.bias)
    if hasattr(visual, "pos_embed"):
        places = patch_places()
        hidden = hidden + visual.pos_embed(places[:, 0] * GRID * MERGE + places[:, 1])
    return hidden


def decode(
    model: PreTrainedModel, embeds: Tensor, levels: list[Tensor], mask: Tensor, rotary: tuple[Tensor, Tensor]
) -> Tensor:
    """Final hidden states ``[B, S, C]`` of ``embeds`` under an additive mask ``[B, 1, S, S]``.

    The levels ``[B, S, C]``, zero for text, are added behind the first layers.
    """
    language = model.model.language_model
    hidden = embeds
    for index, layer in enumerate(language.layers):
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
        if index < len(levels):
            hidden = hidden + levels[index]
    return language.norm(hidden)
