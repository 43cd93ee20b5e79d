"""What a sweep has found out about the one question, in a file, so that an interrupted run can go on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_prune.bench.json_log import JsonLog
from vllm_prune.bench.throughput.errors import BenchmarkError

SCHEMA = 1
ANSWER, TTFT = "answer", "ttft"


class ProbeLog(JsonLog):
    """Entries by (point's name, what, number of the repeat)."""

    def __init__(self, path: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Opens or makes the file; errors as of `JsonLog`."""
        self._values: dict[tuple[str, str, int], Any] = {}
        super().__init__(path, {"schema": SCHEMA, **settings}, resume=resume, content="measurements")
        for number, entry in self.earlier():
            self._take(number, entry)

    def _take(self, number: int, entry: Mapping[str, Any]) -> None:
        try:
            self._values.setdefault((entry["point"], entry["what"], entry["repeat"]), entry["value"])
        except KeyError as error:
            self.close()
            raise BenchmarkError(f"{self.path}:{number}: not a measurement: no {error}; give another -o") from error

    def has(self, point: str, what: str, repeat: int = 0) -> bool:
        """Whether it is known."""
        return (point, what, repeat) in self._values

    def get(self, point: str, what: str, repeat: int = 0) -> Any:
        """What is known; KeyError if it is not."""
        return self._values[point, what, repeat]

    def add(self, point: str, what: str, value: Any, repeat: int = 0) -> None:
        """Keeps a value, in memory and in the file."""
        self._values[point, what, repeat] = value
        self.write([{"point": point, "what": what, "repeat": repeat, "value": value}])

    def __len__(self) -> int:
        return len(self._values)
