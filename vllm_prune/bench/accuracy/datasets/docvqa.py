"""DocVQA (Mathew et al., WACV 2021), task 1: VERSION_withQT.json (or val_v1.0.json), and the pages in documents/.

Any of the published answers is right, and so is one within half of its characters of it, which is where ANLS counts.
"""

from __future__ import annotations

from pathlib import Path

from vllm_prune.bench.accuracy.datasets.records import Record, find_file, find_video, read_json_field
from vllm_prune.bench.accuracy.pictures import FilePicture
from vllm_prune.bench.accuracy.questions import SHORT_INSTRUCTION, Question

FILES = "val_v1.0_withQT.json (or val*.json), documents/..."


def load(folder: Path) -> list[Question]:
    """All questions of the validation split; those of the test split have no published answers."""
    records = read_json_field(find_file(folder, "val*withQT.json", "val*.json"), "data")
    return [_question(folder, record) for record in records]


def _question(folder: Path, record: Record) -> Question:
    answers = record.accepted("answers")
    kinds = record.fields.get("question_types")
    name = Path(record.text("image")).name  # published with its folder, documents/
    return Question(
        key=record.identity("questionId"),
        video=FilePicture(find_video((folder / "documents", folder / "images", folder), name)),
        text=record.text("question"),
        answer=answers[0],
        accepted=answers,
        instruction=SHORT_INSTRUCTION,
        category=str(kinds[0]) if isinstance(kinds, list) and kinds else "all",
    )
