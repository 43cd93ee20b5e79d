"""Clips made on the fly from a seed, with their questions: the one entry point for training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .degrade import CLEAN, Degradation, degrade, moving_background, named_degradation
from .questions import Question, all_questions
from .render import draw_scene, static_texture
from .scene import Scene, sample_scene

CLIP_LENGTHS = (16, 32, 64)  # frames
HELD_OUT_SEED = 1_000_000_000  # training seeds stay below


@dataclass(frozen=True)
class SyntheticClip:
    """``frames [T, 112, 112, 3]`` uint8 RGB and what is in them."""

    frames: np.ndarray
    scene: Scene
    questions: list[Question]


def make_clip(seed: int, frames: int, degradation: Degradation = CLEAN, extra_flashes: int = 0) -> SyntheticClip:
    """The clip of a seed; the same seed gives the same objects whatever the degradation and the extra flashes."""
    scene = sample_scene(np.random.default_rng([seed, 0]), frames, extra_flashes)
    texture = static_texture(np.random.default_rng([seed, 1]))
    rng = np.random.default_rng([seed, 2])
    background = moving_background(rng, texture, frames, degradation)
    pixels = degrade(rng, draw_scene(scene, background), degradation)
    return SyntheticClip(pixels, scene, all_questions(scene))


def evaluation_set(
    n: int, frames: int, seed: int = 0, noise: str | Degradation = "clean", extra_flashes: int = 0
) -> list[tuple[np.ndarray, list[tuple[str, str, str]]]]:
    """``n`` held-out clips of ``frames`` frames.

    Returns (frames ``[T, 112, 112, 3]`` uint8, list of (question type, question, answer)) for each clip. ``noise``
    is a name known to ``named_degradation`` or a ``Degradation``. ``extra_flashes`` adds coloured events that no
    question is about: without the question they cannot be told from those that matter. Seeds are disjoint from those
    of training.
    """
    degradation = named_degradation(noise) if isinstance(noise, str) else noise
    first = HELD_OUT_SEED + seed * 1_000_000
    clips = (make_clip(first + i, frames, degradation, extra_flashes) for i in range(n))
    return [(clip.frames, [(q.type, q.text, q.answer) for q in clip.questions]) for clip in clips]
