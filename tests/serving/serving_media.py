"""Small media made in the tests: frames as vLLM's Python API takes them, and files as a client sends them."""

from __future__ import annotations

import base64
import io
import tempfile
import wave
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image


def frames(num_frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [T, H, W, 3]: a still texture over which, half-way through, a square appears and moves."""
    rng = np.random.default_rng(seed)
    video = np.repeat(rng.integers(0, 256, (1, height, width, 3)), num_frames, axis=0)
    side = max(1, min(height, width) // 3)
    for t in range(num_frames // 2, num_frames):
        left = t % max(1, width - side)
        video[t, :side, left : left + side] = rng.integers(0, 256, 3)
    return video.astype(np.uint8)


def video_item(num_frames: int, height: int, width: int, *, seed: int = 0, fps: float = 2.0) -> tuple[Any, dict]:
    """A video for `multi_modal_data`, with the metadata that a decoder would give."""
    metadata = {
        "fps": fps,
        "duration": num_frames / fps,
        "total_num_frames": num_frames,
        "frames_indices": list(range(num_frames)),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }
    return frames(num_frames, height, width, seed), metadata


def image_item(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(frames(1, height, width, seed)[0])


def mp4(
    num_frames: int = 16,
    height: int = 112,
    width: int = 112,
    *,
    seed: int = 0,
    fps: float = 8.0,
    black: bool = False,
) -> bytes:
    """The bytes of an mp4 file. The codec wants even sizes of 2 or more."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, (width, height))
        assert writer.isOpened()
        pictures = frames(num_frames, height, width, seed)
        for frame in np.zeros_like(pictures) if black else pictures:
            writer.write(frame)
        writer.release()
        return path.read_bytes()


def index_in_front(data: bytes) -> bytes:
    """An mp4 file with its index (`moov`) before the frames, as files for streaming have it.

    Cut off, such a file still opens. The index holds offsets of the frames in the file, which move by its own length.
    """
    boxes = _boxes(data)
    index = bytearray(boxes["moov"])
    table = index.index(b"stco") + 8  # behind the name and four bytes of version and flags: the number of offsets
    for i in range(int.from_bytes(index[table : table + 4], "big")):
        at = slice(table + 4 + 4 * i, table + 8 + 4 * i)
        index[at] = (int.from_bytes(index[at], "big") + len(index)).to_bytes(4, "big")
    return boxes["ftyp"] + bytes(index) + b"".join(box for name, box in boxes.items() if name not in ("ftyp", "moov"))


def _boxes(data: bytes) -> dict[str, bytes]:
    """The top-level boxes of an mp4 file: four bytes of length, four of name, content."""
    boxes, at = {}, 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        boxes[data[at + 4 : at + 8].decode()] = data[at : at + length]
        at += length
    return boxes


def y4m(num_frames: int, height: int, width: int, fps: int = 8) -> bytes:
    """The bytes of an uncompressed file of grey frames, which may have any size, 1 x 1 too."""
    frame = b"FRAME\n" + bytes([100]) * (height * width) + bytes([128]) * (2 * height * width)
    return f"YUV4MPEG2 W{width} H{height} F{fps}:1 Ip A1:1 C444\n".encode() + num_frames * frame


def wav() -> bytes:
    """A tenth of a second of silence."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(1600))
    return buffer.getvalue()


def png(height: int, width: int, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    image_item(height, width, seed).save(buffer, format="PNG")
    return buffer.getvalue()


def data_url(data: bytes, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
