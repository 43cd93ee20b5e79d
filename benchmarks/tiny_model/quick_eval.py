"""Accuracy on held-out clips with the packed forward pass: quick enough to run during training."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from .clips import HELD_OUT_SEED, make_clip
from .data import Batch, collate
from .degrade import named_degradation
from .forward import encode_video, patchify, vision_rotary
from .inputs import sequence_inputs
from .labels import token_labels
from .objective import tail_logits
from .packing import MAX_QUESTIONS, TAIL_LENGTH, pack_questions
from .questions import QUESTION_TYPES, Question
from .tokenizer import token_id


def _held_out_batch(first: int, clips: int, frames: int, noise: str) -> tuple[Batch, list[list[Question]]]:
    """A batch of held-out clips and the questions packed in each, as far as they fit."""
    rng = np.random.default_rng(first)
    items, tails, questions = [], [], []
    for index in range(clips):
        clip = make_clip(HELD_OUT_SEED + first + index, frames, named_degradation(noise))
        order = rng.permutation(len(clip.questions))[:MAX_QUESTIONS]
        asked = [clip.questions[i] for i in order]
        items.append(clip)
        questions.append(asked)
        tails.append(pack_questions(rng, asked))
    labels = [token_labels(clip.scene) for clip in items]
    return collate([clip.frames for clip in items], tails, labels, 1.0, True), questions


@torch.no_grad()
def packed_accuracy(
    model: Qwen2_5_VLForConditionalGeneration, frames: int, clips: int = 64, noise: str = "noise"
) -> dict[str, float]:
    """Per cent of right answers per question type, teacher-forced, at ``frames`` frames."""
    right: dict[str, list[bool]] = defaultdict(list)
    size = 256 // frames
    for first in range(0, clips, size):
        batch, questions = _held_out_batch(first, size, frames, noise)
        mask, rotary = sequence_inputs(model, batch)
        tables = tuple(x.bfloat16() for x in vision_rotary(model))
        video = encode_video(model, patchify(batch.frames), tables).view(size, -1, model.config.text_config.hidden_size)
        said = tail_logits(model, video, batch.ids, mask, rotary).argmax(-1)
        end = model.config.text_config.eos_token_id
        for row in range(size):
            spots = [i for i in range(TAIL_LENGTH) if batch.targets[row, i] not in (-100, end)]
            for spot, question in zip(spots, questions[row], strict=False):
                right[question.type].append(int(said[row, spot]) == token_id(question.answer))
    return {name: round(100 * float(np.mean(right[name])), 1) for name in QUESTION_TYPES if right[name]}
