"""Long clips in which little happens: the events of a short one, somewhere, before a still background."""

from __future__ import annotations

import dataclasses

import numpy as np

from .clips import CLIP_LENGTHS, SyntheticClip
from .degrade import CLEAN, Degradation, degrade, moving_background
from .questions import Question, all_questions
from .render import draw_scene, static_texture
from .scene import Scene, SceneObject, sample_scene

SHORT = CLIP_LENGTHS[-1]
"""Frames in which everything happens."""
FPS = 16  # 512 frames are then as many seconds as the longest clips of the training
EVENTS = ("flash_form", "flash_colour")
"""Questions about what lasts 2 to 4 frames."""


def make_long_clip(seed: int, frames: int, degradation: Degradation = CLEAN) -> SyntheticClip:
    """The clip of a seed, with its questions about short events.

    Raises:
        ValueError: It is shorter than what happens in it.
    """
    if frames < SHORT:
        raise ValueError(f"frames={frames}: must be {SHORT} or more")
    scene = _moved(sample_scene(np.random.default_rng([seed, 0]), SHORT), frames, seed)
    rng = np.random.default_rng([seed, 2])
    background = moving_background(rng, static_texture(np.random.default_rng([seed, 1])), frames, degradation)
    return SyntheticClip(degrade(rng, draw_scene(scene, background), degradation), scene, _questions(scene))


def _moved(scene: Scene, frames: int, seed: int) -> Scene:
    start = int(np.random.default_rng([seed, 3]).integers(frames - scene.frames + 1))

    def later(objects: tuple[SceneObject, ...]) -> tuple[SceneObject, ...]:
        return tuple(dataclasses.replace(each, start=each.start + start) for each in objects)

    kinds = {name: later(getattr(scene, name)) for name in ("shapes", "flashes", "distractors", "extras")}
    return dataclasses.replace(scene, frames=frames, **kinds)


def _questions(scene: Scene) -> list[Question]:
    return [question for question in all_questions(scene) if question.type in EVENTS]
