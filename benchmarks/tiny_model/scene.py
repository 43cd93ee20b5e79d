"""What happens in a clip: shapes that stay for a while, flashes that last 2-4 frames, grey distractors.

A scene is a plain description, sampled from a seeded generator; ``render`` turns it into pixels and ``questions``
into question/answer pairs. Coordinates are pixels, times are frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

FRAME_SIZE = 112
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (240, 230, 50),
    "green": (40, 180, 60),
    "cyan": (50, 210, 220),
    "blue": (50, 80, 230),
    "purple": (165, 60, 205),
}
FORMS = ("circle", "square", "triangle", "cross")
MOTIONS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "still": (0, 0),
}
COLOUR_NAMES = tuple(COLOURS)
MOTION_NAMES = tuple(MOTIONS)

MAX_SHAPES = 3
MIN_SPEED, MAX_SPEED = 1.6, 3.2  # pixels a frame; slower is invisible within one temporal pair
MIN_VISIT = 6  # frames
MAX_VISIT = {16: 16, 32: 20, 64: 24}  # frames a shape stays, by clip length
RING_WIDTHS = {"circle": 4, "square": 4, "triangle": 3, "cross": 2}  # pixels; what leaves a visible hole
PLACEMENT_TRIES = 12


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One thing that is seen from frame ``start`` to ``start + len(path) - 1``.

    ``path`` is ``[frames, 2]``, the centre (x, y) in pixels.
    """

    kind: str  # "shape" (filled), "flash" (a ring) or "distractor"
    colour: str  # a key of COLOURS; "" for a distractor
    form: str
    motion: str
    radius: int
    start: int
    path: np.ndarray
    rgb: tuple[int, int, int]

    @property
    def end(self) -> int:
        """First frame without the object."""
        return self.start + len(self.path)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that can be asked about a clip of ``frames`` frames."""

    frames: int
    shapes: tuple[SceneObject, ...]
    flashes: tuple[SceneObject, ...]
    distractors: tuple[SceneObject, ...]
    extras: tuple[SceneObject, ...] = ()  # further flashes, in colours and forms that no question names

    @property
    def objects(self) -> tuple[SceneObject, ...]:
        """All objects in drawing order: what is asked about lies above the distractors."""
        return self.distractors + self.extras + self.shapes + self.flashes


def _overlaps(candidate: SceneObject, placed: list[SceneObject]) -> bool:
    """Whether the candidate touches a placed object in any frame that both are seen in."""
    for other in placed:
        first, last = max(candidate.start, other.start), min(candidate.end, other.end)
        if first >= last:
            continue
        gap = (
            candidate.path[first - candidate.start : last - candidate.start]
            - other.path[first - other.start : last - other.start]
        )
        if (np.abs(gap).max(axis=1) < candidate.radius + other.radius).any():
            return True
    return False


def _straight_path(rng: np.random.Generator, motion: str, radius: int, frames: int) -> np.ndarray:
    """A path ``[frames, 2]`` at constant speed that stays inside the frame."""
    margin = radius + 1
    direction = np.asarray(MOTIONS[motion], dtype=np.float64)
    longest = (FRAME_SIZE - 2 * margin) / max(frames - 1, 1)
    speed = rng.uniform(MIN_SPEED, min(MAX_SPEED, longest))
    travel = direction * speed * (frames - 1)
    low = margin - np.minimum(travel, 0)
    high = FRAME_SIZE - margin - np.maximum(travel, 0)
    origin = rng.uniform(low, high)
    return origin + direction * speed * np.arange(frames)[:, None]


def _sample_shape(rng: np.random.Generator, colour: str, frames: int) -> SceneObject:
    visit = int(rng.integers(MIN_VISIT, MAX_VISIT[frames] + 1))
    radius = int(rng.integers(9, 12))
    motion = "still" if rng.random() < 0.2 else MOTION_NAMES[rng.integers(4)]
    return SceneObject(
        kind="shape",
        colour=colour,
        form=FORMS[rng.integers(len(FORMS))],
        motion=motion,
        radius=radius,
        start=int(rng.integers(0, frames - visit + 1)),
        path=_straight_path(rng, motion, radius, visit),
        rgb=_jitter(rng, COLOURS[colour]),
    )


def _sample_flash(rng: np.random.Generator, colour: str, form: str, frames: int) -> SceneObject:
    duration = int(rng.integers(2, 5))
    radius = int(rng.integers(10, 14))
    return SceneObject(
        kind="flash",
        colour=colour,
        form=form,
        motion="still",
        radius=radius,
        start=int(rng.integers(0, frames - duration + 1)),
        path=_straight_path(rng, "still", radius, duration),
        rgb=_jitter(rng, COLOURS[colour]),
    )


def _sample_distractor(rng: np.random.Generator, frames: int) -> SceneObject:
    duration = int(rng.integers(1, 5))
    radius = int(rng.integers(6, 13))
    grey = int(rng.choice([rng.integers(10, 60), rng.integers(190, 246)]))
    return SceneObject(
        kind="distractor",
        colour="",
        form=FORMS[rng.integers(len(FORMS))],
        motion="still",
        radius=radius,
        start=int(rng.integers(0, frames - duration + 1)),
        path=_straight_path(rng, "still", radius, duration),
        rgb=(grey, grey, grey),
    )


def _jitter(rng: np.random.Generator, rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    shifted = np.clip(np.asarray(rgb) + rng.integers(-14, 15, size=3), 0, 255)
    return int(shifted[0]), int(shifted[1]), int(shifted[2])


def _place(sample: Callable[[], SceneObject], placed: list[SceneObject]) -> SceneObject | None:
    """Call ``sample`` until its object touches none of ``placed``; None when there is no room."""
    for _ in range(PLACEMENT_TRIES):
        candidate = sample()
        if not _overlaps(candidate, placed):
            placed.append(candidate)
            return candidate
    return None


def sample_scene(rng: np.random.Generator, frames: int, extra_flashes: int = 0) -> Scene:
    """Sample a scene of ``frames`` frames; up to ``extra_flashes`` more coloured events if there is room.

    No colour occurs twice among shapes and flashes, and no form twice among flashes, so that every question
    names exactly one object.
    """
    if frames not in MAX_VISIT:
        raise ValueError(f"frames={frames} is not a clip length; use one of {sorted(MAX_VISIT)}")
    colours = [COLOUR_NAMES[i] for i in rng.permutation(len(COLOUR_NAMES))]
    ring_forms = [FORMS[i] for i in rng.permutation(len(FORMS))]
    shape_count = int(rng.choice([1, 2, 3], p=[0.2, 0.35, 0.45]))
    flash_count = int(rng.choice([0, 1, 2, 3], p=[0.05, 0.2, 0.4, 0.35]))
    placed: list[SceneObject] = []
    shapes = [_place(partial(_sample_shape, rng, colours[i], frames), placed) for i in range(shape_count)]
    flashes = [
        _place(partial(_sample_flash, rng, colours[MAX_SHAPES + i], ring_forms[i], frames), placed)
        for i in range(flash_count)
    ]
    distractors = [_sample_distractor(rng, frames) for _ in range(rng.poisson(frames / 5))]
    extras = [
        _place(
            partial(
                _sample_flash,
                rng,
                str(rng.choice(colours[MAX_SHAPES + flash_count :])),
                str(rng.choice(ring_forms[flash_count:])),
                frames,
            ),
            placed,
        )
        for _ in range(extra_flashes)
    ]
    return Scene(
        frames=frames,
        shapes=tuple(shape for shape in shapes if shape is not None),
        flashes=tuple(flash for flash in flashes if flash is not None),
        distractors=tuple(distractors),
        extras=tuple(extra for extra in extras if extra is not None),
    )
