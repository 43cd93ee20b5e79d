"""The embedded model and its sample clips: a tiny Qwen2.5-VL that answers questions about 112 x 112 clips.

Made by ``benchmarks/tiny_model``; see the README there. Needs nothing but the standard library.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class QuestionAnswer:
    """A question about a clip and its one-word answer; ``type`` is its kind, e.g. "flash_form"."""

    type: str
    question: str
    answer: str


@dataclass(frozen=True)
class Clip:
    """A sample clip: an mp4 file, its length in frames, and what it can be asked."""

    name: str
    path: Path
    frames: int
    fps: float
    disturbance: str  # "clean", or what was added to the render: "noise", "flicker", "drift", "shake", "pan", "all"
    questions: tuple[QuestionAnswer, ...]


def model_path() -> Path:
    """The folder of the embedded checkpoint, in Hugging Face layout."""
    return _FOLDER / "model"


def selector_path() -> Path:
    """The file of the embedded model's selector; its card lies beside it, as selector.md."""
    return _FOLDER / "selector" / "selector.safetensors"


@lru_cache(maxsize=1)
def clips() -> list[Clip]:
    """All sample clips, shortest first."""
    entries = json.loads((_FOLDER / "clips" / "clips.json").read_text())
    return [
        Clip(
            name=Path(entry["file"]).stem,
            path=_FOLDER / "clips" / entry["file"],
            frames=entry["frames"],
            fps=entry["fps"],
            disturbance=entry["disturbance"],
            questions=tuple(QuestionAnswer(**question) for question in entry["questions"]),
        )
        for entry in entries
    ]


def clip_path(name: str) -> Path:
    """The file of the clip called ``name`` (with or without ".mp4")."""
    wanted = name.removesuffix(".mp4")
    for clip in clips():
        if clip.name == wanted:
            return clip.path
    raise ValueError(f"name={name!r} is not a sample clip; use one of {[clip.name for clip in clips()]}")
