"""A forward pass for training over Hugging Face's own modules, in static shapes that compile well.

Same arithmetic as ``Qwen2_5_VLForConditionalGeneration``; only the bookkeeping for clips of varying size is gone: every
clip is 112 x 112, so windows and frames are plain batch dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration
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


def vision_rotary(model: Qwen2_5_VLForConditionalGeneration) -> tuple[Tensor, Tensor]:
    """cos and sin ``[64, head_dim]`` of a frame's patches in window order."""
    cells = WINDOW_ORDER[:, None]
    inside = torch.arange(UNIT)[None]
    rows = (cells // GRID) * MERGE + inside // MERGE
    columns = (cells % GRID) * MERGE + inside % MERGE
    positions = torch.stack([rows.reshape(-1), columns.reshape(-1)], dim=-1)
    visual = model.model.visual
    return visual.rotary_pos_emb(torch.zeros(1), positions)


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


def encode_video(model: Qwen2_5_VLForConditionalGeneration, patches: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Merged vision tokens ``[B * T/2, 16, C]`` in raster order from ``patchify``'s patches."""
    visual = model.model.visual
    hidden = F.linear(patches.flatten(1, 2), visual.patch_embed.proj.weight.flatten(1))
    for index, block in enumerate(visual.blocks):
        windowed = index not in visual.fullatt_block_indexes
        hidden = hidden + _vision_attention(block.attn, block.norm1(hidden), rotary, windowed)
        hidden = hidden + block.mlp(block.norm2(hidden))
    merged = visual.merger(hidden)
    return merged.view(patches.shape[0], GRID * GRID, -1)[:, RASTER_ORDER]


def decode(
    model: Qwen2_5_VLForConditionalGeneration, embeds: Tensor, mask: Tensor, rotary: tuple[Tensor, Tensor]
) -> Tensor:
    """Final hidden states ``[B, S, C]`` of ``embeds`` under an additive mask ``[B, 1, S, S]``."""
    language = model.model.language_model
    hidden = embeds
    for layer in language.layers:
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
    return language.norm(hidden)
