"""Clips of a ball that is thrown and bounces, and where it goes after the clip ends."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

SIDE = 224
"""Pixels, of a square frame."""
FRAMES, FPS = 12, 2
GRID = (6, 8, 8)
"""What the embedded models make of a clip: steps, rows and columns of cells."""
HORIZON = 8
"""Frames after the clip, whose positions are to be predicted."""
RADIUS = 16
_SPEED, _PULL = 14.0, 1.0
"""Largest speed of a throw along either axis, in pixels a frame, and what gravity adds in a frame."""
_COLOURS = {"red": (220, 40, 40), "blue": (40, 70, 220), "green": (40, 180, 60), "yellow": (230, 200, 40)}


@dataclass(frozen=True)
class Clip:
    """One clip and its answer."""

    frames: np.ndarray
    """uint8 [FRAMES, SIDE, SIDE, 3]"""
    centres: np.ndarray
    """(x, y) of the ball in these frames and those that follow, [FRAMES + HORIZON, 2], in pixels."""
    colour: str
    """Of the ball."""

    @property
    def path(self) -> np.ndarray:
        """(x, y) of the ball in the frames that follow, [HORIZON, 2] float32, in frame sides."""
        return (self.centres[FRAMES:] / SIDE).astype(np.float32)

    @property
    def question(self) -> str:
        """What a method that asks the question is given."""
        return f"Which way does the {self.colour} shape move?"

    def ball_cells(self, grid: tuple[int, int, int]) -> np.ndarray:
        """Which cells of a video's grid (steps, rows, columns) the ball covers a tenth of at some time, bool."""
        steps, rows, columns = grid
        covered = np.stack([_disc(centre) for centre in self.centres[:FRAMES]])
        share = covered.reshape(steps, -1, rows, SIDE // rows, columns, SIDE // columns).mean(axis=(3, 5))
        return (share > 0.1).any(axis=1)

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
    wall = np.repeat(np.repeat(random.integers(90, 150, (14, 14, 3)), SIDE // 14, axis=0), SIDE // 14, axis=1)
    for _ in range(2):
        left, top = random.integers(0, SIDE - 40, 2)
        wall[top : top + 40, left : left + 40] = random.integers(0, 255, 3)
    colour = list(_COLOURS)[int(random.integers(len(_COLOURS)))]
    frames = np.repeat(wall[None], FRAMES, axis=0).astype(np.uint8)
    for frame, centre in zip(frames, centres, strict=False):
        frame[_disc(centre)] = _COLOURS[colour]
    return Clip(frames, centres, colour)


def _disc(centre: np.ndarray) -> np.ndarray:
    """Pixels of the ball, [SIDE, SIDE] bool."""
    y, x = np.mgrid[:SIDE, :SIDE]
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= RADIUS**2


def _throw(random: np.random.Generator, steps: int) -> np.ndarray:
    """(x, y) in pixels, [steps, 2]: a constant pull down, and walls that reflect."""
    place = random.uniform(RADIUS, SIDE - RADIUS, 2)
    speed = random.uniform(-_SPEED, _SPEED, 2)
    found = []
    for _ in range(steps):
        found.append(place.copy())
        speed[1] += _PULL
        place = place + speed
        for axis in range(2):
            for wall in (RADIUS, SIDE - RADIUS):
                beyond = place[axis] - wall
                if (beyond < 0) == (wall == RADIUS):
                    place[axis], speed[axis] = wall - beyond, -0.9 * speed[axis]
    return np.clip(np.array(found), RADIUS, SIDE - RADIUS)
