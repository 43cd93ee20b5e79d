"""The answers of a run in a JSON Lines file, each written as it comes, so that an interrupted run can go on.

The first line tells what all of them were asked with. Further lines are answers, or sessions: when, how long, on which
machine and with which code some of them were asked.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vllm_prune.bench.accuracy.asking import Answer
from vllm_prune.bench.accuracy.questions import Question
from vllm_prune.bench.throughput.errors import BenchmarkError

SCHEMA = 1
_SESSION = "session"


class AnswerLog:
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
        self.path = path
        self.sessions: list[dict[str, Any]] = []
        self._answers: dict[tuple[str, str], Answer] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+", encoding="utf-8")
        try:
            self._lock()
            self._read({"schema": SCHEMA, **settings}, resume)
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            remedy = "wait for its end, or give another -o"
            raise BenchmarkError(f"{self.path}: another run writes to it; {remedy}") from error

    def _read(self, header: dict[str, Any], resume: bool) -> None:
        self._file.seek(0)
        lines = self._file.read().splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            # The run was ended while it wrote this line; the answer is asked for again.
            self._truncate(len("".join(lines[:-1]).encode()))
            lines.pop()
        if not lines:
            self._write([header])
            return
        if not resume:
            raise BenchmarkError(f"{self.path}: has answers of an earlier run; go on with --resume, or give another -o")
        self._check_header(lines[0], header)
        for number, line in enumerate(lines[1:], 2):
            entry = self._object(number, line)
            if _SESSION in entry:
                self.sessions.append(entry[_SESSION])
            else:
                self._remember(self._parse(number, entry))

    def _truncate(self, size: int) -> None:
        self._file.truncate(size)
        self._file.seek(0, os.SEEK_END)

    def _check_header(self, line: str, header: Mapping[str, Any]) -> None:
        earlier = self._object(1, line)
        wanted = json.loads(json.dumps(header))
        for key in {**wanted, **earlier}:
            if earlier.get(key) != wanted.get(key):
                raise BenchmarkError(
                    f"{self.path}: its answers were asked with {key}={earlier.get(key)!r}, this run has "
                    f"{wanted.get(key)!r}; run with the same, or give another -o"
                )

    def _parse(self, number: int, entry: dict[str, Any]) -> Answer:
        try:
            return Answer(**entry)
        except TypeError as error:
            raise BenchmarkError(f"{self.path}:{number}: not an answer: {error}; give another -o") from error

    def _object(self, number: int, line: str) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except json.JSONDecodeError as error:
            raise BenchmarkError(f"{self.path}:{number}: not valid JSON: {error.msg}; give another -o") from error
        if not isinstance(found, dict):
            raise BenchmarkError(f"{self.path}:{number}: not an object; give another -o")
        return found

    def _remember(self, answer: Answer) -> bool:
        """Whether it is new: no question counts twice."""
        key = (answer.configuration, answer.question)
        return key not in self._answers and self._answers.setdefault(key, answer) is answer

    def _write(self, entries: Iterable[dict[str, Any]]) -> None:
        self._file.write("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
        self._file.flush()

    def add(self, answers: Iterable[Answer]) -> None:
        """Keep answers, in memory and in the file."""
        self._write([dataclasses.asdict(answer) for answer in answers if self._remember(answer)])

    def add_session(self, session: dict[str, Any]) -> None:
        """Keep what is to be known about the answers added so far."""
        self.sessions.append(session)
        self._write([{_SESSION: session}])

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

    def close(self) -> None:
        """Close the file; another run may then go on with it."""
        self._file.close()

    def __enter__(self) -> AnswerLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
