"""Answers of a model to many questions about one clip, from one packed forward pass."""

from __future__ import annotations

import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from .config import TIME_STRIDE
from .forward import encode_video, patchify, vision_rotary
from .inputs import sequence_inputs
from .objective import tail_logits
from .packing import pack_prompts
from .tokenizer import build_tokenizer


@torch.no_grad()
def packed_answers(
    model: Qwen2_5_VLForConditionalGeneration,
    frames: np.ndarray,
    questions: list[str],
    time_stride: float = TIME_STRIDE,
    vllm_rule: bool = True,
) -> list[str]:
    """The first answer token to each question about ``frames [T, 112, 112, 3]`` uint8.

    ``model`` must use eager attention, whose masks are additive. Each question is answered as if it were alone.
    """
    tail, last = pack_prompts(questions)
    dtype = model.lm_head.weight.dtype
    patches = patchify(torch.from_numpy(frames)[None]).to(dtype)
    chain, offset = torch.from_numpy(tail.chain)[None], torch.from_numpy(tail.offset)[None]
    mask, rotary = sequence_inputs(model, len(frames) // 2, chain, offset, time_stride, vllm_rule)
    tables = tuple(table.to(dtype) for table in vision_rotary(model))
    video = encode_video(model, patches, tables).view(1, -1, model.config.text_config.hidden_size)
    logits = tail_logits(model, video, torch.from_numpy(tail.ids)[None], mask, rotary)
    return [build_tokenizer().decode([token]) for token in logits[0, last].argmax(-1).tolist()]
