"""The answers of a run in a JSON Lines file, each written as it comes, so that an interrupted run can go on.

The first line tells what all of them were asked with. Further lines are answers, or sessions: when, how long, on which
machine and with which code some of them were asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vllm_prune.bench.accuracy.asking import Answer
from vllm_prune.bench.accuracy.questions import Question
from vllm_prune.bench.json_log import JsonLog
from vllm_prune.bench.throughput.errors import BenchmarkError

SCHEMA = 1


class AnswerLog(JsonLog):
    """Answers by configuration and question, and the sessions that they come from."""

    def __init__(self, path: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Opens or makes the file.

        Args:
            path: The file.
            settings: All that answers depend on besides configuration and question; JSON-ready.
            resume: Go on with the answers that are there.

        Raises:
            BenchmarkError: There are answers and `resume` is not set, or they were asked with other settings, or
                another run writes to the file.
        """
        self._answers: dict[tuple[str, str], Answer] = {}
        super().__init__(path, {"schema": SCHEMA, **settings}, resume=resume, content="answers")
        try:
            self._take_earlier()
        except BaseException:
            self.close()
            raise

    def _take_earlier(self) -> None:
        for number, entry in self.earlier():
            self._remember(self._parse(number, entry))

    def _parse(self, number: int, entry: dict[str, Any]) -> Answer:
        try:
            return Answer(**entry)
        except TypeError as error:
            raise BenchmarkError(f"{self.path}:{number}: not an answer: {error}; give another -o") from error

    def _remember(self, answer: Answer) -> bool:
        """Whether it is new: no question counts twice."""
        key = (answer.configuration, answer.question)
        return key not in self._answers and self._answers.setdefault(key, answer) is answer

    def add(self, answers: Iterable[Answer]) -> None:
        """Keep answers, in memory and in the file."""
        self.write([dataclasses.asdict(answer) for answer in answers if self._remember(answer)])

    def get(self, configuration: str, question: Question) -> Answer | None:
        """The answer to a question, if it has been asked.

        Raises:
            BenchmarkError: A question with this key has been asked, but it was another one.
        """
        answer = self._answers.get((configuration, question.key))
        if answer is not None and (answer.text, answer.expected) != (question.text, question.answer):
            raise BenchmarkError(
                f"{self.path}: question {question.key!r} was {answer.text!r} ({answer.expected}) and is now "
                f"{question.text!r} ({question.answer}): the dataset has changed; give another -o"
            )
        return answer

    def __len__(self) -> int:
        return len(self._answers)
