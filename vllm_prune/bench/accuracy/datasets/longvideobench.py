"""LongVideoBench (Wu et al., NeurIPS 2024), validation: lvb_val.json and videos/. Subtitles are not used."""

from __future__ import annotations

from pathlib import Path

from vllm_prune.bench.accuracy.datasets.records import Record, find_video, read_json_records
from vllm_prune.bench.accuracy.questions import Question, letters
from vllm_prune.bench.accuracy.videos import FileVideo

FILES = "lvb_val.json, videos/..."


def load(folder: Path) -> list[Question]:
    """All questions of the validation split; those of the test split have no published answers."""
    return [_question(folder, record) for record in read_json_records(folder / "lvb_val.json")]


def _question(folder: Path, record: Record) -> Question:
    options = record.texts("candidates")
    duration = record.optional_number("duration_group")
    return Question(
        key=record.text("id"),
        video=FileVideo(find_video((folder / "videos",), record.text("video_path"))),
        text=record.text("question"),
        options=options,
        answer=letters(len(options))[record.index("correct_choice", len(options))],
        category=record.text("question_category"),
        subset="all" if duration is None else f"up to {duration:.0f} s",
    )
