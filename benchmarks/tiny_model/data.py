"""Training batches, a function of (seed, step): the same arguments give the same batch in any process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .clips import make_clip
from .degrade import CLEAN, random_degradation
from .labels import token_labels
from .packing import MAX_QUESTIONS, Tail, pack_questions
from .questions import sample_questions

FRAMES_A_STEP = 256  # 16 clips of 16 frames, 8 of 32 or 4 of 64
MAX_CLIPS_A_STEP = 16
# Temporal positions between temporal pairs: files of any frame rate, and frames without one, must work.
TIME_STRIDES = (1 / 6, 1 / 3, 0.5, 1.0, 1.0, 4 / 3, 2.0, 2.0, 2.0, 4.0)
VLLM_RULE_SHARE = 0.85
CLEAN_SHARE = 0.3


@dataclass
class Batch:
    """``frames [B, T, 112, 112, 3]`` uint8; the tails' arrays ``[B, TAIL_LENGTH]``; labels ``[B, T/2 * 16, 4]``."""

    frames: Tensor
    ids: Tensor
    targets: Tensor
    chain: Tensor
    offset: Tensor
    labels: Tensor
    time_stride: float
    vllm_rule: bool


def collate(
    frames: list[np.ndarray], tails: list[Tail], labels: list[np.ndarray], stride: float, vllm_rule: bool
) -> Batch:
    """Stack clips of one length."""

    def stack(arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(arrays))

    return Batch(
        frames=stack(frames),
        ids=stack([tail.ids for tail in tails]),
        targets=stack([tail.targets for tail in tails]),
        chain=stack([tail.chain for tail in tails]),
        offset=stack([tail.offset for tail in tails]),
        labels=stack(labels),
        time_stride=stride,
        vllm_rule=vllm_rule,
    )


def training_batch(seed: int, step: int, length_shares: dict[int, float], frames_a_step: int = FRAMES_A_STEP) -> Batch:
    """The batch of a step; ``length_shares`` maps clip lengths in frames to the probability of a batch of them."""
    rng = np.random.default_rng([seed, step])
    length = int(rng.choice(list(length_shares), p=list(length_shares.values())))
    frames, tails, labels = [], [], []
    for index in range(frames_a_step // length):
        degradation = CLEAN if rng.random() < CLEAN_SHARE else random_degradation(rng)
        clip = make_clip(step * MAX_CLIPS_A_STEP + index, length, degradation)
        frames.append(clip.frames)
        labels.append(token_labels(clip.scene))
        tails.append(pack_questions(rng, sample_questions(rng, clip.scene, MAX_QUESTIONS)))
    stride = float(rng.choice(TIME_STRIDES))
    return collate(frames, tails, labels, stride, bool(rng.random() < VLLM_RULE_SHARE))


class TrainingBatches(Dataset):
    """Batches of steps ``first .. first + steps - 1``; ``curriculum`` gives the length shares of a step."""

    def __init__(
        self,
        seed: int,
        first: int,
        steps: int,
        curriculum: Callable[[int], dict[int, float]],
        frames_a_step: int = FRAMES_A_STEP,
    ):
        self.seed, self.first, self.steps, self.curriculum = seed, first, steps, curriculum
        self.frames_a_step = frames_a_step

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Batch:
        step = self.first + index
        return training_batch(self.seed, step, self.curriculum(step), self.frames_a_step)
