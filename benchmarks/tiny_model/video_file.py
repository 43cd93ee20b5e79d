"""Frames to mp4 and back, with OpenCV only."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path

import cv2
import numpy as np

from .config import FPS


def write_mp4(path: Path, frames: np.ndarray) -> None:
    """Encode RGB ``frames [T, H, W, 3]`` uint8 as MPEG-4 part 2, which every OpenCV build can write and read."""
    height, width = frames.shape[1:3]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), FPS, (width, height))
    if not writer.isOpened():
        raise RuntimeError(f"OpenCV cannot write {path}: it was built without an MPEG-4 encoder")
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()


def read_mp4(path: Path) -> np.ndarray:
    """All RGB frames ``[T, H, W, 3]`` uint8 of a file."""
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        found, frame = capture.read()
        if not found:
            break
        frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    capture.release()
    return np.stack(frames)


def mp4_bytes(frames: np.ndarray) -> bytes:
    """The content of the mp4 file of RGB ``frames [T, H, W, 3]``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_mp4(path, frames)
        return path.read_bytes()


def data_url(frames: np.ndarray) -> str:
    """The clip as a base64 data URL for an OpenAI-compatible server."""
    return "data:video/mp4;base64," + base64.b64encode(mp4_bytes(frames)).decode()
