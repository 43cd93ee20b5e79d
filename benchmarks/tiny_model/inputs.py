"""Attention mask and rotary tables of packed sequences."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .layout import VideoLayout
from .packing import packed_mask, packed_positions


def text_rotary(model: PreTrainedModel, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin ``[B, S, head_dim]``, in the model's type, of M-RoPE positions ``[3, B, S]``."""
    like = torch.zeros(1, dtype=model.lm_head.weight.dtype)
    return model.model.language_model.rotary_emb(like, positions)


def sequence_inputs(
    model: PreTrainedModel, layout: VideoLayout, chain: Tensor, offset: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Additive mask ``[B, 1, S, S]`` and rotary tables for tails ``[B, L]`` after a video."""
    mask = packed_mask(layout, chain).to(model.lm_head.weight.dtype)
    return mask, text_rotary(model, packed_positions(layout, offset))
