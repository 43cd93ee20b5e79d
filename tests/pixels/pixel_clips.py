"""Clips of which it is known what stands still: frames [T, H, W, 3] uint8, and their cells as the planner sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vllm_prune.methods.still_cells import describe_cells

SIDE, CELL = 112, 28
GRID = SIDE // CELL
ONES, ZEROS = torch.ones(3), torch.zeros(3)


def texture(seed: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """[height, width, 3] float: smooth patterns, bright and dark enough for light to change both ways."""
    noise = np.random.default_rng(seed).uniform(60, 190, (height // 7, width // 7, 3))
    return np.repeat(np.repeat(noise, 7, axis=0), 7, axis=1)


def still(frames: int, seed: int = 0) -> np.ndarray:
    """Nothing moves."""
    return np.repeat(texture(seed)[None], frames, axis=0)


def noisy(clip: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    """Sensor noise."""
    return clip + np.random.default_rng(seed).normal(0, sigma, clip.shape)


def lit(clip: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Every frame as much brighter as its `gain` [T] says."""
    return clip * gain[:, None, None, None]


def flickering(clip: np.ndarray, amount: float, seed: int = 0) -> np.ndarray:
    return lit(clip, 1 + amount * np.random.default_rng(seed).uniform(-1, 1, len(clip)))


def drifting(clip: np.ndarray, amount: float) -> np.ndarray:
    return lit(clip, 1 + amount * np.linspace(-0.5, 0.5, len(clip)))


def panning(frames: int, speed: int, seed: int = 0) -> np.ndarray:
    """The camera turns by `speed` pixels a frame."""
    wide = texture(seed, SIDE, SIDE + 7 * frames * speed)
    return np.stack([wide[:, t * speed : t * speed + SIDE] for t in range(frames)])


def pure_noise(frames: int, seed: int = 0, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Every cell of every frame is new."""
    blocks = np.random.default_rng(seed).uniform(0, 255, (frames, height // 7, width // 7, 3))
    return np.repeat(np.repeat(blocks, 7, axis=1), 7, axis=2)


def with_square(clip: np.ndarray, seed: int = 0) -> np.ndarray:
    """A square of one cell walks over the clip, a cell every two frames."""
    shown = clip.copy()
    for t in range(len(clip)):
        place = (t // 2 + seed) % GRID**2
        row, column = CELL * (place // GRID), CELL * (place % GRID)
        shown[t, row : row + CELL, column : column + CELL] = np.random.default_rng(seed).uniform(0, 255, 3)
    return shown


def to_bytes(clip: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(clip), 0, 255).astype(np.uint8)


def video_item(clip: np.ndarray, fps: float = 2.0) -> tuple[np.ndarray, dict[str, Any]]:
    """For `multi_modal_data`, with the metadata that a decoder would give."""
    metadata = {
        "fps": fps,
        "duration": len(clip) / fps,
        "total_num_frames": len(clip),
        "frames_indices": list(range(len(clip))),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }
    return to_bytes(clip), metadata


def to_patches(clip: np.ndarray, patch: int = 14, merge: int = 2) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """uint8 patches of an even number of frames in the order of Qwen's video processors, and the grid in cells."""
    frames, height, width, _ = clip.shape
    t, h, w = frames // 2, height // (patch * merge), width // (patch * merge)
    pixels = torch.from_numpy(to_bytes(clip)).view(t, 2, h, merge, patch, w, merge, patch, 3)
    return pixels.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(t * h * w * merge**2, -1), (t, h, w)


def to_cells(clip: np.ndarray) -> torch.Tensor:
    """What the planner compares."""
    patches, grid = to_patches(clip)
    return describe_cells(patches, grid, merge=2, patch=14, scale=ONES, black=ZEROS)
