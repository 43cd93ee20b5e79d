"""From a batch of clips and tails to the tensors of the forward pass."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from .data import Batch
from .packing import packed_mask, packed_positions


def text_rotary(model: Qwen2_5_VLForConditionalGeneration, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin ``[B, S, head_dim]`` in bf16 of M-RoPE positions ``[3, B, S]``."""
    return model.model.language_model.rotary_emb(torch.zeros(1, dtype=torch.bfloat16), positions)


def sequence_inputs(model: Qwen2_5_VLForConditionalGeneration, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Attention mask and rotary tables of a batch."""
    pairs = batch.frames.shape[1] // 2
    positions = packed_positions(pairs, batch.time_stride, batch.vllm_rule, batch.offset)
    return packed_mask(pairs, batch.chain), text_rotary(model, positions)
