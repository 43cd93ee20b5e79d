"""Several questions about one clip in one sequence, so that the video is encoded and prefilled once for all.

A packed sequence is a video (``layout.py``) and a tail. The tail holds chains of turns; a chain sees the video
and itself, never another chain. Positions of each chain start over, as if it were alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .layout import SHARED, VideoLayout
from .questions import Question
from .tokenizer import IM_END, IM_START, encode

TAIL_LENGTH = 128  # tokens
MAX_QUESTIONS = 8
FOLLOW_UP_SHARE = 0.1  # of questions, asked as the second turn of a chain
IGNORED = -100


@dataclass(frozen=True)
class Tail:
    """Arrays ``[L]``, L = TAIL_LENGTH in training.

    Token ids, next-token targets, the chain each token belongs to (-1 is padding) and its offset within the chain.
    """

    ids: np.ndarray
    targets: np.ndarray
    chain: np.ndarray
    offset: np.ndarray


def _turn(question: Question, follows: bool) -> tuple[list[int], list[int]]:
    """Token ids of one turn and the targets at each of them (answer and end of turn only)."""
    opening = f"\n{IM_START}user\n" if follows else ""
    asked = encode(f"{opening}{question.text}{IM_END}\n{IM_START}assistant\n")
    answer = encode(question.answer + IM_END)
    ids = [*asked, *answer]
    targets = [IGNORED] * (len(asked) - 1) + list(answer) + [IGNORED]
    return ids, targets


def pack_questions(rng: np.random.Generator, questions: list[Question]) -> Tail:
    """Lay out as many questions as fit."""
    tail = Tail(
        ids=np.zeros(TAIL_LENGTH, dtype=np.int64),
        targets=np.full(TAIL_LENGTH, IGNORED, dtype=np.int64),
        chain=np.full(TAIL_LENGTH, -1, dtype=np.int64),
        offset=np.zeros(TAIL_LENGTH, dtype=np.int64),
    )
    used, chain, chain_start = 0, -1, 0
    for question in questions:
        follows = chain >= 0 and rng.random() < FOLLOW_UP_SHARE
        ids, targets = _turn(question, follows)
        if used + len(ids) > TAIL_LENGTH:
            break
        if not follows:
            chain, chain_start = chain + 1, used
        span = slice(used, used + len(ids))
        tail.ids[span], tail.targets[span], tail.chain[span] = ids, targets, chain
        tail.offset[span] = np.arange(used, used + len(ids)) - chain_start
        used += len(ids)
    return tail


def pack_prompts(texts: list[str]) -> tuple[Tail, list[int]]:
    """A tail of just these questions, one chain each, without answers; and the index of each one's last token."""
    prompts = [encode(f"{text}{IM_END}\n{IM_START}assistant\n") for text in texts]
    tail = Tail(
        ids=np.concatenate([np.asarray(ids, dtype=np.int64) for ids in prompts]),
        targets=np.full(sum(map(len, prompts)), IGNORED, dtype=np.int64),
        chain=np.concatenate([np.full(len(ids), i, dtype=np.int64) for i, ids in enumerate(prompts)]),
        offset=np.concatenate([np.arange(len(ids), dtype=np.int64) for ids in prompts]),
    )
    return tail, (np.cumsum([len(ids) for ids in prompts]) - 1).tolist()


def packed_positions(layout: VideoLayout, offset: torch.Tensor) -> torch.Tensor:
    """M-RoPE positions ``[3, B, S]`` of packed sequences; ``offset`` is ``[B, L]``."""
    tail = (layout.next_position + offset).expand(3, -1, -1)
    return torch.cat([layout.positions[:, None].expand(-1, len(offset), -1), tail], dim=2)


def packed_mask(layout: VideoLayout, chain: torch.Tensor) -> torch.Tensor:
    """Additive bf16 attention mask ``[B, 1, S, S]``: causal, and nothing of another chain.

    ``chain`` is ``[B, L]``.
    """
    groups = torch.cat([layout.groups.expand(len(chain), -1), chain], dim=1)
    visible = (groups[:, None, :] == SHARED) | (groups[:, None, :] == groups[:, :, None])
    visible &= torch.ones(groups.shape[1], groups.shape[1], dtype=torch.bool).tril()
    hidden = torch.full((), torch.finfo(torch.bfloat16).min, dtype=torch.bfloat16)
    return torch.where(visible, torch.zeros((), dtype=torch.bfloat16), hidden)[:, None]
