"""Questions, answers and videos that tests make themselves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vllm_prune.bench.accuracy.asking import Answer
from vllm_prune.bench.accuracy.questions import Question

SIZE = 32  # pixels
FPS = 8.0


@dataclass(frozen=True)
class NamedVideo:
    """A video that is never looked at."""

    key: str
    scene: str = ""


def question(key: str = "q", **changes: Any) -> Question:
    video = NamedVideo(changes.pop("video", "v"))
    video = NamedVideo(video.key, changes.pop("scene", video.key))
    return Question(**{"key": key, "video": video, "text": f"{key}?", "answer": "red", **changes})


def answer(key: str = "q", right: bool = True, **changes: Any) -> Answer:
    said = "red" if right else "blue"
    fields = {
        "configuration": "stock",
        "question": key,
        "text": f"{key}?",
        "expected": "red",
        "said": said,
        "predicted": said,
        "right": right,
        "prompt_tokens": 110,
        "video_tokens": 100,
    }
    return Answer(**{**fields, **changes})


def picture(number: int) -> np.ndarray:
    """A grey picture whose brightness tells its number (0 to 24); RGB."""
    return np.full((SIZE, SIZE, 3), 10 * number, np.uint8)


def number_of(pixels: np.ndarray) -> int:
    """The number of a picture that has been through a codec."""
    return round(float(pixels.mean()) / 10)


def write_video(path: Path, frames: int = 24) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FPS, (SIZE, SIZE))
    assert writer.isOpened()
    for number in range(frames):
        writer.write(picture(number))
    writer.release()
    return path


def write_pictures(folder: Path, frames: int = 12) -> Path:
    folder.mkdir(parents=True)
    for number in range(frames):
        assert cv2.imwrite(str(folder / f"{number + 1:05}.png"), picture(number))
    return folder


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path
