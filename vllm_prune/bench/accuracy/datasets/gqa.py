"""GQA (Hudson and Manning, CVPR 2019): NAME_balanced_questions.json, an object by question, and images/ID.jpg."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vllm_prune.bench.accuracy.datasets.records import Record, find_file, find_video, read_json
from vllm_prune.bench.accuracy.pictures import FilePicture
from vllm_prune.bench.accuracy.questions import SHORT_INSTRUCTION, Question
from vllm_prune.bench.throughput.errors import BenchmarkError

FILES = "testdev_balanced_questions.json (or another *_questions.json), images/ID.jpg"


def load(folder: Path) -> list[Question]:
    """All questions of the file."""
    path = find_file(folder, "testdev_balanced_questions.json", "*_balanced_questions.json", "*_questions.json")
    content = read_json(path)
    if not isinstance(content, Mapping) or not all(isinstance(entry, Mapping) for entry in content.values()):
        raise BenchmarkError(f"{path}: must be an object of question id: question")
    return [_question(folder, key, Record(f"{path}, question {key}", entry)) for key, entry in content.items()]


def _question(folder: Path, key: str, record: Record) -> Question:
    kinds = record.fields.get("types")
    return Question(
        key=key,
        video=FilePicture(find_video((folder / "images",), f"{record.identity('imageId')}.jpg")),
        text=record.text("question"),
        answer=record.text("answer"),
        instruction=SHORT_INSTRUCTION,
        category=str(kinds["structural"]) if isinstance(kinds, Mapping) and "structural" in kinds else "all",
    )
