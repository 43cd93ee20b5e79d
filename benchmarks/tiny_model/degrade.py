"""What cameras and codecs add to a clean render: pan, shake, flicker, drift, sensor noise, compression."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from .render import TEXTURE_MARGIN
from .scene import FRAME_SIZE


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """How a clip is disturbed; all zero is a clean render."""

    noise_sigma: float = 0.0  # standard deviation of sensor noise, in grey levels (0-255)
    flicker: float = 0.0  # largest relative change of brightness from frame to frame, e.g. 0.05
    drift: float = 0.0  # relative change of brightness over the clip, e.g. 0.2
    shake: float = 0.0  # largest shift of the whole picture, in pixels
    pan: float = 0.0  # speed of the background, in pixels a frame
    jpeg_quality: int = 0  # 1-100; 0 leaves out compression


CLEAN = Degradation()


def named_degradation(name: str) -> Degradation:
    """The disturbances that accuracy tables are made with, one at a time.

    >>> named_degradation("noise").noise_sigma
    4.0
    """
    known = {
        "clean": CLEAN,
        "noise": Degradation(noise_sigma=4.0),
        "flicker": Degradation(flicker=0.05),
        "drift": Degradation(drift=0.2),
        "shake": Degradation(shake=1.5),
        "pan": Degradation(pan=0.8),
        "compression": Degradation(jpeg_quality=70),
        "all": Degradation(noise_sigma=4.0, flicker=0.05, drift=0.2, shake=1.0, pan=0.5, jpeg_quality=80),
    }
    if name not in known:
        raise ValueError(f"noise={name!r} is unknown; use one of {sorted(known)}")
    return known[name]


def random_degradation(rng: np.random.Generator) -> Degradation:
    """The mixture that the model is trained with."""

    def sometimes(probability: float, high: float) -> float:
        return float(rng.uniform(0, high)) if rng.random() < probability else 0.0

    return Degradation(
        noise_sigma=sometimes(0.5, 8.0),
        flicker=sometimes(0.2, 0.08),
        drift=sometimes(0.2, 0.3),
        shake=sometimes(0.15, 2.0),
        pan=sometimes(0.15, 1.2),
        jpeg_quality=int(rng.integers(50, 96)) if rng.random() < 0.1 else 0,
    )


def moving_background(
    rng: np.random.Generator, texture: np.ndarray, frames: int, degradation: Degradation
) -> np.ndarray:
    """The texture as the camera sees it, ``[T, 112, 112, 3]`` uint8; all frames equal without a pan."""
    still = texture.astype(np.uint8)
    angle = rng.uniform(0, 2 * np.pi)
    speed = min(degradation.pan, 2 * (TEXTURE_MARGIN - 4) / frames)
    steps = (np.arange(frames) - frames / 2)[:, None] * speed * np.array([np.cos(angle), np.sin(angle)])
    corners = np.rint(steps).astype(int) + TEXTURE_MARGIN
    return np.stack([still[y : y + FRAME_SIZE, x : x + FRAME_SIZE] for x, y in corners])


@lru_cache(maxsize=1)
def _noise_bank() -> np.ndarray:
    """Unit normal noise ``[2**21]``; slices of it are far cheaper than fresh samples."""
    return np.random.default_rng(7).standard_normal(2**21).astype(np.float32)


def _add_noise(rng: np.random.Generator, frames: np.ndarray, sigma: float) -> np.ndarray:
    bank, size = _noise_bank(), FRAME_SIZE * FRAME_SIZE * 3
    starts = rng.integers(0, len(bank) - size, size=len(frames))
    noise = np.stack([bank[start : start + size] for start in starts]).reshape(frames.shape)
    return frames + sigma * noise


def _brightness(rng: np.random.Generator, frames: int, degradation: Degradation) -> np.ndarray:
    """Gain of each frame, ``[T]``."""
    slope = rng.choice([-1.0, 1.0]) * degradation.drift
    drift = 1 + slope * np.linspace(-0.5, 0.5, frames)
    return (drift * (1 + degradation.flicker * rng.uniform(-1, 1, size=frames))).astype(np.float32)


def _shake(rng: np.random.Generator, frames: np.ndarray, amount: float) -> np.ndarray:
    """Shift each frame by up to ``amount`` pixels; edges repeat."""
    margin = int(np.ceil(amount))
    padded = np.pad(frames, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="edge")
    offsets = np.rint(rng.uniform(-amount, amount, size=(len(frames), 2))).astype(int) + margin
    return np.stack(
        [frame[y : y + FRAME_SIZE, x : x + FRAME_SIZE] for frame, (x, y) in zip(padded, offsets, strict=True)]
    )


def _compress(frame: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def degrade(rng: np.random.Generator, frames: np.ndarray, degradation: Degradation) -> np.ndarray:
    """Apply everything but the pan to ``frames [T, 112, 112, 3]`` uint8; returns the same shape and type."""
    if degradation.shake:
        frames = _shake(rng, frames, degradation.shake)
    if degradation.noise_sigma or degradation.flicker or degradation.drift:
        light = frames * _brightness(rng, len(frames), degradation)[:, None, None, None]
        if degradation.noise_sigma:
            light = _add_noise(rng, light, degradation.noise_sigma)
        frames = np.clip(light, 0, 255).astype(np.uint8)
    if degradation.jpeg_quality:
        frames = np.stack([_compress(frame, degradation.jpeg_quality) for frame in frames])
    return frames
