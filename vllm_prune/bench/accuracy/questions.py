"""Questions about videos and pictures, and the text that asks them."""

from __future__ import annotations

import string
from dataclasses import dataclass

from vllm_prune.bench.accuracy.pictures import Picture
from vllm_prune.bench.accuracy.videos import Video
from vllm_prune.bench.throughput.errors import BenchmarkError

INSTRUCTION = "Answer with the option's letter from the given choices directly."
"""What the evaluation code of the Qwen and LLaVA families appends to a multiple-choice question."""
SHORT_INSTRUCTION = "Answer the question using a single word or phrase."
"""Likewise to a question with an answer of a few words."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question with its right answer; hashable, so that answers can be looked up by it."""

    key: str
    """Tells it from every other question of the dataset, in this run and the next."""
    video: Video | Picture
    """What it is about."""
    text: str
    answer: str
    """The right option's letter, or the word itself where there are no options."""
    options: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    """Where there are no options: further right answers, each of which may have typing mistakes (see `judge`)."""
    instruction: str = ""
    """What is said after a question without options."""
    category: str = "all"
    """What kind of question it is."""
    subset: str = "all"
    """What kind of video or picture it is about."""
    seed: int = 0
    """The sample it belongs to; standard errors are taken over samples."""

    def prompt(self) -> str:
        """The user's text.

        Multiple choice, as published for Qwen2.5-VL: the question, a line for each option, the instruction.
        """
        if not self.options:
            return f"{self.text}\n{self.instruction}" if self.instruction else self.text
        lines = [f"{letter}. {option}" for letter, option in zip(letters(len(self.options)), self.options, strict=True)]
        return "\n".join((self.text, *lines, INSTRUCTION))


def video_of(question: Question, doing: str) -> Video:
    """The video that a question is about.

    Raises:
        BenchmarkError: It is about a picture, which `doing` does not take.
    """
    if isinstance(question.video, Picture):
        raise BenchmarkError(f"{doing} takes videos only, and question {question.key!r} is about a picture")
    return question.video


def letters(count: int) -> str:
    """The letters of `count` options.

    >>> letters(3)
    'ABC'
    """
    if not 2 <= count <= len(string.ascii_uppercase):
        raise ValueError(f"{count} options; a multiple-choice question has 2 to {len(string.ascii_uppercase)}")
    return string.ascii_uppercase[:count]
