"""Clips of a ball that is thrown and bounces, and where it goes after the clip ends."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

SIDE = 112
"""Pixels, of a square frame."""
FRAMES, FPS = 12, 4
HORIZON = 8
"""Frames after the clip, whose positions are to be predicted."""
RADIUS = 9
_COLOURS = ((220, 40, 40), (40, 70, 220), (40, 180, 60), (230, 200, 40))


@dataclass(frozen=True)
class Clip:
    """One clip and its answer."""

    frames: np.ndarray
    """uint8 [FRAMES, SIDE, SIDE, 3]"""
    path: np.ndarray
    """(x, y) of the ball in the frames that follow, [HORIZON, 2] float32, in frame sides."""

    def mp4(self) -> bytes:
        """The clip as a file."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "clip.mp4"
            writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), FPS, (SIDE, SIDE))
            for frame in self.frames:
                writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
            writer.release()
            return file.read_bytes()


def make_clip(seed: int) -> Clip:
    """One clip, the same for the same seed: a textured wall, two boxes that stand still, and the ball."""
    random = np.random.default_rng(seed)
    centres = _throw(random, FRAMES + HORIZON)
    wall = np.repeat(np.repeat(random.integers(90, 150, (14, 14, 3)), 8, axis=0), 8, axis=1)
    for _ in range(2):
        left, top = random.integers(0, SIDE - 20, 2)
        wall[top : top + 20, left : left + 20] = random.integers(0, 255, 3)
    colour = _COLOURS[int(random.integers(len(_COLOURS)))]
    y, x = np.mgrid[:SIDE, :SIDE]
    frames = np.repeat(wall[None], FRAMES, axis=0).astype(np.uint8)
    for frame, (cx, cy) in zip(frames, centres, strict=False):
        frame[(x - cx) ** 2 + (y - cy) ** 2 <= RADIUS**2] = colour
    return Clip(frames, (centres[FRAMES:] / SIDE).astype(np.float32))


def _throw(random: np.random.Generator, steps: int) -> np.ndarray:
    """(x, y) in pixels, [steps, 2]: a constant pull down, and walls that reflect."""
    place = random.uniform(RADIUS, SIDE - RADIUS, 2)
    speed = random.uniform(-7, 7, 2)
    pull = random.uniform(0.0, 1.0)
    found = []
    for _ in range(steps):
        found.append(place.copy())
        speed[1] += pull
        place = place + speed
        for axis in range(2):
            for wall in (RADIUS, SIDE - RADIUS):
                beyond = place[axis] - wall
                if (beyond < 0) == (wall == RADIUS):
                    place[axis], speed[axis] = wall - beyond, -0.9 * speed[axis]
    return np.clip(np.array(found), RADIUS, SIDE - RADIUS)
