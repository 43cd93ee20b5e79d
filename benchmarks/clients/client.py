"""What every client has in common: questions in, a command, and what it found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vllm_prune.embedded import Clip, clips

MODEL = "embedded"
MAX_TOKENS = 8  # of an answer, which is one word


@dataclass(frozen=True)
class Question:
    """A sample clip and what it is asked."""

    clip: Clip
    question: str
    answer: str


def sample_questions() -> list[Question]:
    """The first question of every sample clip."""
    return [Question(clip, clip.questions[0].question, clip.questions[0].answer) for clip in clips()]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a client: where its files go, whom it asks, and by which interpreter it is started."""

    folder: Path
    """Task files and what the client writes."""
    url: str
    """Of the server, without `/v1`."""
    python: Path
    """Of the environment that the client is installed in."""
    questions: list[Question] = field(default_factory=sample_questions)

    @property
    def program(self) -> str:
        """Folder of the environment's console commands."""
        return str(self.python.parent)


@dataclass(frozen=True)
class Found:
    """What a client says of its run: requests that were answered, and figures by their title and unit."""

    answered: int
    figures: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Client:
    """A client. `name` is also that of its file in `requirements/`."""

    name: str
    command: Callable[[Run], list[str]]
    """Writes the task's files and gives program and arguments."""
    read: Callable[[Run], Found]
    """Reads what the client wrote; raises where that is missing or tells of failed requests."""
    environment: Mapping[str, str] = field(default_factory=dict)
