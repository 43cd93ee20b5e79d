"""Answers of a model to many questions about one clip, from one packed forward pass."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel

from .config import TIME_STRIDE
from .forward import encode_video, patchify, vision_rotary
from .inputs import sequence_inputs
from .layout import video_layout
from .objective import tail_logits
from .packing import pack_prompts
from .tokenizer import build_tokenizer


@torch.no_grad()
def packed_answers(
    model: PreTrainedModel,
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
    layout = video_layout(model.config.model_type, len(frames) // 2, time_stride, vllm_rule)
    mask, rotary = sequence_inputs(model, layout, chain, offset)
    tables = tuple(table.to(dtype) for table in vision_rotary(model))
    video = encode_video(model, patches, tables)[None]
    shared_ids = (layout.head, layout.lead, layout.after, layout.closing)
    logits = tail_logits(model, video, shared_ids, torch.from_numpy(tail.ids)[None], mask, rotary)
    tokenizer = build_tokenizer(timestamps=True)
    return [tokenizer.decode([token]) for token in logits[0, last].argmax(-1).tolist()]
