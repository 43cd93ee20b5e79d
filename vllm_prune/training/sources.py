"""What a selector is trained on: videos, and questions about each of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vllm_prune.bench.accuracy.datasets import SYNTHETIC, load_published
from vllm_prune.bench.accuracy.datasets.synthetic import generator
from vllm_prune.bench.accuracy.questions import video_of
from vllm_prune.bench.accuracy.videos import FileVideo, Frames, Video, spread
from vllm_prune.training.errors import TrainingError

_SUFFIXES = {".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg"}
_QUESTIONS_A_CLIP = 10
_FIRST_SEED = 500_000_000
"""Above every seed of the embedded model's training, below every one of an evaluation set."""
_LENGTHS, _LENGTH_SHARES = (16, 32, 64), (0.4, 0.4, 0.2)
_CLEAN_SHARE = 0.3
_VALIDATION_SHARE = 0.07

GENERIC = (
    "What happens in the video?",
    "Describe the video in detail.",
    "What is the main object in the video?",
    "What is the person doing?",
    "How many people are there?",
    "What color is the moving object?",
    "Where does the video take place?",
    "What text can be read in the video?",
    "What happens at the beginning?",
    "What happens at the end?",
    "What changes, and when?",
    "In which direction does it move?",
    "Which objects are on the table?",
    "What is in the background?",
    "What is the person holding?",
    "Is there an animal in the video? Which one?",
)
"""Asked about videos that come without questions of their own."""


@dataclass(frozen=True)
class Item:
    """A video and what is asked about it."""

    video: Video
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    """The expected words; empty strings where nobody knows."""
    types: tuple[str, ...]

    @property
    def key(self) -> str:
        """Equal for equal items."""
        return self.video.key + "\n" + "\n".join(self.questions)

    @property
    def validates(self) -> bool:
        """Whether it is kept out of training, to validate: a share of the scenes, whatever the others are."""
        first = hashlib.sha256(self.video.scene.encode()).digest()[0]
        return first < 256 * _VALIDATION_SHARE


@dataclass(frozen=True)
class TrainingClip:
    """A clip of the embedded model's generator with the mixture of disturbances of its training."""

    number: int

    @property
    def key(self) -> str:
        return f"synthetic-{self.number}"

    @property
    def scene(self) -> str:
        return self.key

    def frames(self, limit: int) -> Frames:
        rng = np.random.default_rng([77, self.number])
        length = int(rng.choice(_LENGTHS, p=_LENGTH_SHARES))
        degrade = generator("degrade")
        degradation = degrade.CLEAN if rng.random() < _CLEAN_SHARE else degrade.random_degradation(rng)
        clip = generator("clips").make_clip(_FIRST_SEED + self.number, length, degradation)
        chosen = spread(length, limit)
        return Frames(clip.frames[chosen], tuple(chosen), length, generator("config").FPS)

    def data_url(self) -> str:
        raise NotImplementedError  # for servers, which nothing here asks

    def item(self, leave_out: Sequence[str]) -> Item:
        """With questions of its scene in several phrasings."""
        rng = np.random.default_rng([78, self.number])
        length = int(np.random.default_rng([77, self.number]).choice(_LENGTHS, p=_LENGTH_SHARES))
        scene = generator("scene").sample_scene(np.random.default_rng([_FIRST_SEED + self.number, 0]), length)
        asked = generator("questions").sample_questions(rng, scene, _QUESTIONS_A_CLIP)
        asked = [question for question in asked if question.type not in leave_out]
        texts, answers, types = ([getattr(q, name) for q in asked] for name in ("text", "answer", "type"))
        return Item(self, tuple(texts), tuple(answers), tuple(types))


def synthetic(clips: int, leave_out: Sequence[str] = ()) -> list[Item]:
    """Clips that no model was trained or is evaluated on; without questions of the types `leave_out`."""
    known = generator("questions").QUESTION_TYPES
    for kind in leave_out:
        if kind not in known:
            raise TrainingError(f"leave_out={kind!r}; use some of {', '.join(known)}")
    items = [TrainingClip(number).item(leave_out) for number in range(clips)]
    return [item for item in items if item.questions]


def folder(path: Path, questions: Sequence[str] = GENERIC) -> list[Item]:
    """Every video file below a folder, each with the same questions."""
    if not path.is_dir():
        raise TrainingError(f"videos={str(path)!r}: no such folder")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
    if not files:
        raise TrainingError(f"videos={str(path)!r}: no video in it; looked for {', '.join(sorted(_SUFFIXES))}")
    none = ("",) * len(questions)
    return [Item(FileVideo(file), tuple(questions), none, ("all",) * len(questions)) for file in files]


def dataset(name: str, data: Path, clips: int, leave_out: Sequence[str]) -> list[Item]:
    """A dataset as of `vllm-prune bench accuracy`: "synthetic", a published one's name, or a file of questions."""
    if name == SYNTHETIC:
        return synthetic(clips, leave_out)
    by_video: dict[str, list] = {}
    for question in load_published(name, data):
        if question.category not in leave_out:
            by_video.setdefault(question.video.key, []).append(question)
    return [
        Item(
            video_of(asked[0], "train-selector"),
            tuple(question.prompt() for question in asked),
            tuple(question.answer for question in asked),
            tuple(question.category for question in asked),
        )
        for asked in by_video.values()
    ]
