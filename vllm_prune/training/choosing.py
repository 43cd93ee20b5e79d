"""Tokens chosen before layer 0, and what the model answers from them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vllm_prune.config.methods import EXPONENTS
from vllm_prune.methods.attention_importance import select_top
from vllm_prune.methods.base import VideoTokens
from vllm_prune.methods.question import choose_diverse, weigh_log_relevance
from vllm_prune.training.backbone import Backbone
from vllm_prune.training.clips import Asked, Clip

EXPONENT = EXPONENTS["learned"]
"""Of the relevance in the DPP's kernel: log-relevance scores times this, as served by default."""


def top(scores: Tensor, count: int) -> Tensor:
    """Indices [count] of the highest scores, increasing."""
    return select_top(scores, count)


def diverse(clip: Clip, count: int, scores: Tensor | None = None, exponent: float = EXPONENT) -> Tensor:
    """Indices [count], increasing, by greedy MAP of a DPP over the whole video.

    scores: [N] log-relevance; None: no question.
    """
    score = clip.features.new_zeros(len(clip.features), dtype=torch.float32) if scores is None else scores
    tokens = VideoTokens.from_features(clip.features, clip.grid)
    return choose_diverse(tokens, count, weigh_log_relevance(score, exponent), "video")


def answers(backbone: Backbone, clip: Clip, asked: Sequence[Asked], kept: Sequence[Tensor]) -> Tensor:
    """[Q] first token of each answer, from the tokens `kept` ([K] increasing) alone, at their original positions."""
    rows, positions = [], []
    for each, tokens in zip(asked, kept, strict=True):
        rows.append(backbone.rows(clip, each, tokens))
        positions.append(kept_positions(backbone, clip, each, tokens))
    return backbone.answer(rows, positions)


def kept_positions(backbone: Backbone, clip: Clip, asked: Asked, kept: Tensor) -> Tensor:
    """[3, h + K + S + t]: positions of the unpruned prompt, without the tokens that are gone."""
    every = backbone.positions(clip, asked)
    start, end = len(asked.head), len(asked.head) + clip.layout.num_slots
    return torch.cat([every[:, :start], every[:, start:end][:, clip.places(kept).to(every.device)], every[:, end:]], 1)


def first_token(backbone: Backbone, answer: str) -> int:
    """Token id that an answer begins with."""
    return int(backbone.processor.tokenizer(answer, add_special_tokens=False).input_ids[0])
