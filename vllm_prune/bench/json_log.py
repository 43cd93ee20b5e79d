"""A JSON Lines file that a run writes as it goes, so that it can go on after an interruption.

The first line tells what all others depend on; a run with other settings is refused.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from vllm_prune.bench.throughput import provenance
from vllm_prune.bench.throughput.errors import BenchmarkError

_SESSION = "session"


class JsonLog:
    """One object a line, locked against other runs.

    Attributes:
        sessions: When, where and by which command entries were added, earlier runs first.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], *, resume: bool, content: str) -> None:
        """Opens or makes the file.

        Args:
            path: The file.
            header: All that the entries depend on; JSON-ready.
            resume: Go on with the entries that are there.
            content: What the entries are called in messages, such as "answers".

        Raises:
            BenchmarkError: There are entries and `resume` is not set, or they were made with another header, or another
                run writes to the file.
        """
        self.path, self._content = path, content
        self.sessions: list[dict[str, Any]] = []
        self._written = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+", encoding="utf-8")
        try:
            self._lock()
            self._earlier = [
                (number, entry) for number, entry in self._read(header, resume) if not self._take_session(entry)
            ]
        except BaseException:
            self._file.close()
            raise

    def _take_session(self, entry: Mapping[str, Any]) -> bool:
        if _SESSION in entry:
            self.sessions.append(entry[_SESSION])
        return _SESSION in entry

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            remedy = "wait for its end, or give another -o"
            raise BenchmarkError(f"{self.path}: another run writes to it; {remedy}") from error

    def _read(self, header: Mapping[str, Any], resume: bool) -> list[tuple[int, dict[str, Any]]]:
        self._file.seek(0)
        lines = self._file.read().splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            # The run was ended while it wrote this line; what it told is found out again.
            self._file.truncate(len("".join(lines[:-1]).encode()))
            self._file.seek(0, os.SEEK_END)
            lines.pop()
        if not lines:
            self.write([header])
            return []
        if not resume:
            raise BenchmarkError(
                f"{self.path}: has {self._content} of an earlier run; go on with --resume, or give another -o"
            )
        self._check_header(lines[0], header)
        return [(number, self._object(number, line)) for number, line in enumerate(lines[1:], 2)]

    def _check_header(self, line: str, header: Mapping[str, Any]) -> None:
        earlier = self._object(1, line)
        wanted = json.loads(json.dumps(header))
        for key in {**wanted, **earlier}:
            if earlier.get(key) != wanted.get(key):
                raise BenchmarkError(
                    f"{self.path}: its {self._content} were made with {key}={earlier.get(key)!r}, this run has "
                    f"{wanted.get(key)!r}; run with the same, or give another -o"
                )

    def _object(self, number: int, line: str) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except json.JSONDecodeError as error:
            raise BenchmarkError(f"{self.path}:{number}: not valid JSON: {error.msg}; give another -o") from error
        if not isinstance(found, dict):
            raise BenchmarkError(f"{self.path}:{number}: not an object; give another -o")
        return found

    def earlier(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The entries that were there when it was opened, with line numbers."""
        return iter(self._earlier)

    def write(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Adds entries to the file at once."""
        lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries]
        self._file.write("".join(lines))
        self._file.flush()
        self._written += len(lines)

    @contextlib.contextmanager
    def session(self, command: Sequence[str]) -> Iterator[None]:
        """Notes when, where and how the entries of the block were made, also where it is interrupted."""
        started, begin, before = datetime.datetime.now(datetime.UTC), time.monotonic(), self._written
        place = provenance.describe()
        try:
            yield
        finally:
            session = {
                "command": shlex.join(command),
                "started": started.isoformat(timespec="seconds"),
                "seconds": round(time.monotonic() - begin, 1),
                self._content: self._written - before,
                **place,
            }
            self.sessions.append(session)
            self.write([{_SESSION: session}])

    def close(self) -> None:
        """Closes the file; another run may then go on with it."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
