"""Attention mask and rotary tables of packed sequences."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from .packing import packed_mask, packed_positions


def text_rotary(model: Qwen2_5_VLForConditionalGeneration, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin ``[B, S, head_dim]``, in the model's type, of M-RoPE positions ``[3, B, S]``."""
    like = torch.zeros(1, dtype=model.lm_head.weight.dtype)
    return model.model.language_model.rotary_emb(like, positions)


def sequence_inputs(
    model: Qwen2_5_VLForConditionalGeneration,
    pairs: int,
    chain: Tensor,
    offset: Tensor,
    time_stride: float,
    vllm_rule: bool,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Additive mask ``[B, 1, S, S]`` and rotary tables for tails ``[B, L]`` after ``pairs`` temporal pairs of video."""
    mask = packed_mask(pairs, chain).to(model.lm_head.weight.dtype)
    return mask, text_rotary(model, packed_positions(pairs, time_stride, vllm_rule, offset))
