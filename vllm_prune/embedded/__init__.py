"""The embedded models and their sample clips: a tiny Qwen2.5-VL and a tiny Qwen3-VL; clips are 112 x 112.

Made by ``benchmarks/tiny_model``; see the README there. Needs nothing but the standard library.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_FOLDER = Path(__file__).parent
DEFAULT = "embedded"
_SUFFIXES = {DEFAULT: "", "embedded-qwen3-vl": "_qwen3_vl"}
NAMES = tuple(_SUFFIXES)
"""What commands call the models: a Qwen2.5-VL, the default, and a Qwen3-VL."""
LISTED = ", ".join(NAMES)


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


def model_path(name: str = DEFAULT) -> Path:
    """The folder of an embedded checkpoint, in Hugging Face layout; ValueError for a name that is not in `NAMES`."""
    return _FOLDER / f"model{_suffix(name)}"


def selector_path(name: str = DEFAULT) -> Path:
    """The file of an embedded model's selector; its card lies beside it, as selector.md."""
    return _FOLDER / f"selector{_suffix(name)}" / "selector.safetensors"


def resolve(model: str) -> str:
    """The folder of the embedded model called `model`; any other folder or hub name as it is.

    >>> resolve("some/model"), resolve("embedded-qwen3-vl").endswith("/model_qwen3_vl")
    ('some/model', True)
    """
    return str(model_path(model)) if model in _SUFFIXES else model


def selector_of(folder: Path) -> Path | None:
    """The selector of the embedded model in `folder`; None for any other model."""
    return next((selector_path(name) for name in NAMES if model_path(name) == folder), None)


def _suffix(name: str) -> str:
    if name not in _SUFFIXES:
        raise ValueError(f"name={name!r} is not an embedded model; use one of {list(NAMES)}")
    return _SUFFIXES[name]


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
