"""Reading entries of JSON, JSON Lines and Parquet files, with errors that name file, entry and field."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_prune.bench.accuracy.questions import letters
from vllm_prune.bench.needs import require
from vllm_prune.bench.throughput.errors import BenchmarkError


@dataclass(frozen=True)
class Record:
    """One entry of a file."""

    where: str
    """File and entry, for messages."""
    fields: Mapping[str, Any]

    def error(self, field: str, problem: str) -> BenchmarkError:
        """An error about one field."""
        return BenchmarkError(f"{self.where}, field {field!r}: {problem}")

    def text(self, field: str) -> str:
        """A string that is not empty."""
        value = self._required(field)
        if not isinstance(value, str) or not value.strip():
            raise self.error(field, f"{value!r}: must be text that is not empty")
        return value

    def optional_text(self, field: str, default: str) -> str:
        """A string, or `default` where there is no such field."""
        return default if self.fields.get(field) is None else self.text(field)

    def texts(self, field: str) -> tuple[str, ...]:
        """The options of a question: two texts or more."""
        value = self._required(field)
        # Parquet gives arrays.
        values = value if isinstance(value, list | tuple) else getattr(value, "tolist", lambda: None)()
        if not isinstance(values, list | tuple) or not all(isinstance(item, str) for item in values):
            raise self.error(field, f"{value!r}: must be a list of texts")
        if not 2 <= len(values) <= 26:
            raise self.error(field, f"{len(values)} texts: a multiple-choice question has 2 to 26 options")
        return tuple(values)

    def accepted(self, field: str) -> tuple[str, ...]:
        """The right answers to a question: one text or more."""
        value = self._required(field)
        if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
            raise self.error(field, f"{value!r}: must be a list of one text or more")
        return tuple(value)

    def identity(self, field: str) -> str:
        """A text or an integer that names something."""
        value = self._required(field)
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else self.text(field)

    def index(self, field: str, count: int) -> int:
        """An integer from 0 to count - 1."""
        value = self._required(field)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
            raise self.error(field, f"{value!r}: must be an integer from 0 to {count - 1}")
        return value

    def optional_number(self, field: str) -> float | None:
        """A number, or None where there is no such field."""
        value = self.fields.get(field)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(field, f"{value!r}: must be a number")
        return float(value)

    def letter_of_text(self, field: str, options: tuple[str, ...]) -> str:
        """The letter of the option that the field repeats."""
        value = self.text(field)
        matching = [index for index, option in enumerate(options) if option.strip() == value.strip()]
        if len(matching) != 1:
            raise self.error(field, f"{value!r}: must be one of the options {list(options)!r}")
        return letters(len(options))[matching[0]]

    def letter(self, field: str, count: int) -> str:
        """The letter of one of `count` options."""
        value = self.text(field).strip()
        if len(value) != 1 or value.upper() not in letters(count):
            raise self.error(field, f"{value!r}: must be a letter from A to {letters(count)[-1]}")
        return value.upper()

    def _required(self, field: str) -> Any:
        if field not in self.fields:
            raise self.error(field, f"missing; the entry has {', '.join(map(repr, self.fields)) or 'no field'}")
        return self.fields[field]


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BenchmarkError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"{path}: not UTF-8 text: {error}") from error
    except json.JSONDecodeError as error:
        raise BenchmarkError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from error


def read_tasks(paths: Iterable[Path]) -> Iterator[tuple[str, int, Record]]:
    """The entries of JSON files of a task each: the task, which is the file's name, the entry's number, the entry."""
    for path in paths:
        for number, record in enumerate(read_json_records(path)):
            yield path.stem, number, record


def read_json_records(path: Path) -> list[Record]:
    """The entries of a JSON file that holds a list of objects."""
    content = read_json(path)
    if not isinstance(content, list):
        raise BenchmarkError(f"{path}: holds {type(content).__name__}; must be a list of objects")
    return _records(path, "entry", enumerate(content))


def read_json_field(path: Path, field: str) -> list[Record]:
    """The entries of a JSON file that holds an object with a list of objects in one of its fields."""
    content = read_json(path)
    entries = content.get(field) if isinstance(content, Mapping) else None
    if not isinstance(entries, list):
        raise BenchmarkError(f"{path}: must be an object with a list of objects in its field {field!r}")
    return _records(path, f"{field} entry", enumerate(entries))


def read_json_lines(path: Path) -> list[Record]:
    """The objects of a JSON Lines file, one a line; empty lines are skipped."""
    entries = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"{path}: not UTF-8 text: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                entries.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                raise BenchmarkError(f"{path}:{number}:{error.colno}: not valid JSON: {error.msg}") from error
    return _records(path, "line", entries)


def read_parquet(path: Path) -> list[Record]:
    """The rows of a Parquet file."""
    try:
        require("pandas", "pandas", f"{path}: reading Parquet")
        require("pyarrow", "pyarrow", f"{path}: reading Parquet")
    except BenchmarkError as error:
        raise BenchmarkError(f"{error}; or export the file to JSON Lines (.jsonl)") from error
    import pandas

    try:
        table = pandas.read_parquet(path)
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{path}: not a Parquet file: {error}") from error
    return _records(path, "row", enumerate(table.to_dict(orient="records")))


def _records(path: Path, kind: str, entries: Iterable[tuple[int, Any]]) -> list[Record]:
    records = []
    for number, entry in entries:
        where = f"{path}, {kind} {number}"
        if not isinstance(entry, Mapping):
            raise BenchmarkError(f"{where}: {type(entry).__name__}; must be an object")
        records.append(Record(where, entry))
    return records


def find_file(folder: Path, *names: str) -> Path:
    """The first of `names` (which may have wildcards) that is in `folder`."""
    for name in names:
        if found := sorted(folder.glob(name)):
            return found[0]
    raise BenchmarkError(f"{folder}: holds none of {', '.join(names)}")


def find_video(folders: Iterable[Path], name: str) -> Path:
    """The file called `name` in the first of `folders` that has it; else where it should be, in the first folder."""
    places = [folder / name for folder in folders]
    return next((place for place in places if place.exists()), places[0])
