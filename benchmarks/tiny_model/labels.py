"""What each merged vision token shows: the targets of the auxiliary losses."""

from __future__ import annotations

import numpy as np

from .render import form_mask
from .scene import COLOUR_NAMES, FORMS, FRAME_SIZE, MOTION_NAMES, Scene, SceneObject

CELL = 28  # pixels a side of one merged token
GRID = FRAME_SIZE // CELL
MIN_COVERAGE = 50  # pixels of an object, over both frames, that make a token show it
# Class 0 means "nothing"; flashes have no motion.
CLASSES = {"colour": len(COLOUR_NAMES) + 1, "form": len(FORMS) + 1, "motion": len(MOTION_NAMES) + 1, "kind": 3}


def _classes(item: SceneObject) -> tuple[int, int, int, int]:
    """Class indices (colour, form, motion, kind) of a shape or a flash."""
    is_flash = item.kind == "flash"
    motion = 0 if is_flash else MOTION_NAMES.index(item.motion) + 1
    return COLOUR_NAMES.index(item.colour) + 1, FORMS.index(item.form) + 1, motion, 1 + is_flash


def _coverage(item: SceneObject, frames: int) -> np.ndarray:
    """Pixels of the object in each token's area, ``[frames / 2, 4, 4]``."""
    counts = np.zeros((frames // 2, GRID, GRID), dtype=np.int64)
    mask = form_mask(item.form, item.radius, item.kind == "flash")
    rows, columns = np.nonzero(mask)
    for offset, (x, y) in enumerate(np.rint(item.path).astype(int) - item.radius):
        cells = np.clip((rows + y) // CELL, 0, GRID - 1) * GRID + np.clip((columns + x) // CELL, 0, GRID - 1)
        pair = (item.start + offset) // 2
        counts[pair] += np.bincount(cells, minlength=GRID * GRID).reshape(GRID, GRID)
    return counts


def token_labels(scene: Scene) -> np.ndarray:
    """Class indices ``[frames / 2 * 16, 4]`` in the order of ``CLASSES``, of the object that covers most."""
    labels = np.zeros((scene.frames // 2, GRID, GRID, len(CLASSES)), dtype=np.int64)
    best = np.full(labels.shape[:3], MIN_COVERAGE)
    for item in scene.shapes + scene.flashes:
        coverage = _coverage(item, scene.frames)
        wins = coverage > best
        labels[wins] = _classes(item)
        best = np.maximum(best, coverage)
    return labels.reshape(-1, len(CLASSES))
