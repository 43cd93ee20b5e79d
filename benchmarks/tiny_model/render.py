"""Scene to pixels: static texture, filled shapes, rings. About 1 ms for 16 frames."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from .scene import FRAME_SIZE, RING_WIDTHS, Scene, SceneObject

TEXTURE_MARGIN = 40  # pixels of texture beyond each edge, for camera pans


def _filled(form: str, radius: int) -> np.ndarray:
    """Boolean mask ``[2r+1, 2r+1]`` of a filled form."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    if form == "circle":
        return x**2 + y**2 <= radius**2
    if form == "square":
        return np.maximum(np.abs(x), np.abs(y)) <= 0.86 * radius
    if form == "triangle":
        return (np.abs(x) <= (y + radius) / 1.85) & (y <= 0.8 * radius)
    if form == "cross":
        return np.minimum(np.abs(x), np.abs(y)) <= 0.33 * radius
    raise ValueError(f"form={form!r} is unknown")


@lru_cache(maxsize=256)
def form_mask(form: str, radius: int, ring: bool) -> np.ndarray:
    """Boolean mask ``[2r+1, 2r+1]`` of a form; ``ring`` leaves only its outline."""
    mask = _filled(form, radius)
    if ring:
        width = RING_WIDTHS[form]
        padded = np.pad(mask, 1).astype(np.uint8)
        inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
        mask = mask & (inner == 0)
    return mask


def static_texture(rng: np.random.Generator) -> np.ndarray:
    """A muted texture ``[112 + 2 margin, 112 + 2 margin, 3]``, float32 in 0..255."""
    size = FRAME_SIZE + 2 * TEXTURE_MARGIN
    base = rng.uniform(60, 170) + rng.uniform(-12, 12, size=3)
    coarse = rng.normal(0, rng.uniform(4, 18), size=(8, 8, 1)) + rng.normal(0, 4, size=(8, 8, 3))
    fine = rng.normal(0, rng.uniform(1, 9), size=(size // 3, size // 3)).astype(np.float32)
    texture = cv2.resize(coarse.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    texture += cv2.resize(fine, (size, size), interpolation=cv2.INTER_LINEAR)[..., None]
    return np.clip(texture + base.astype(np.float32), 0, 255)


def _draw(frame: np.ndarray, item: SceneObject, centre: np.ndarray) -> None:
    """Draw one object into ``frame [112, 112, 3]`` in place."""
    x, y = np.rint(centre).astype(int)
    radius = item.radius
    mask = form_mask(item.form, radius, item.kind == "flash")
    top, left = y - radius, x - radius
    bottom, right = min(top + mask.shape[0], FRAME_SIZE), min(left + mask.shape[1], FRAME_SIZE)
    patch = frame[max(top, 0) : bottom, max(left, 0) : right]
    patch[mask[max(-top, 0) : bottom - top, max(-left, 0) : right - left]] = item.rgb


def draw_scene(scene: Scene, background: np.ndarray) -> np.ndarray:
    """Draw all objects onto ``background [T, 112, 112, 3]`` (uint8, changed in place) and return it."""
    for item in scene.objects:
        for offset, centre in enumerate(item.path):
            _draw(background[item.start + offset], item, centre)
    return background
