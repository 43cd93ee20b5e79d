"""Questions about videos, and the text that asks them."""

from __future__ import annotations

import string
from dataclasses import dataclass

from vllm_prune.bench.accuracy.videos import Video

INSTRUCTION = "Answer with the option's letter from the given choices directly."
"""What the evaluation code of the Qwen and LLaVA families appends to a multiple-choice question."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question with its right answer; hashable, so that answers can be looked up by it."""

    key: str
    """Tells it from every other question of the dataset, in this run and the next."""
    video: Video
    text: str
    answer: str
    """The right option's letter, or the word itself where there are no options."""
    options: tuple[str, ...] = ()
    category: str = "all"
    """What kind of question it is."""
    subset: str = "all"
    """What kind of video it is about."""
    seed: int = 0
    """The sample it belongs to; standard errors are taken over samples."""

    def prompt(self) -> str:
        """The user's text.

        Multiple choice, as published for Qwen2.5-VL: the question, a line for each option, the instruction.
        """
        if not self.options:
            return self.text
        lines = [f"{letter}. {option}" for letter, option in zip(letters(len(self.options)), self.options, strict=True)]
        return "\n".join((self.text, *lines, INSTRUCTION))


def letters(count: int) -> str:
    """The letters of `count` options.

    >>> letters(3)
    'ABC'
    """
    if not 2 <= count <= len(string.ascii_uppercase):
        raise ValueError(f"{count} options; a multiple-choice question has 2 to {len(string.ascii_uppercase)}")
    return string.ascii_uppercase[:count]
