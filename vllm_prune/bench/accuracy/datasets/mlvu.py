"""MLVU (Zhou et al., CVPR 2025), dev: json/N_TASK.json, video/N_TASK/. Its two tasks without options are left out."""

from __future__ import annotations

from pathlib import Path

from vllm_prune.bench.accuracy.datasets.records import Record, find_video, read_tasks
from vllm_prune.bench.accuracy.questions import Question
from vllm_prune.bench.accuracy.videos import FileVideo
from vllm_prune.bench.throughput.errors import BenchmarkError

FILES = "json/N_TASK.json, video/N_TASK/..."
OPEN_ENDED = ("8_sub_scene", "9_summary")
"""Tasks to be judged by another model."""


def load(folder: Path) -> list[Question]:
    """The multiple-choice questions of every task whose JSON file is there."""
    paths = [path for path in sorted((folder / "json").glob("*.json")) if path.stem not in OPEN_ENDED]
    if not paths:
        raise BenchmarkError(f"{folder / 'json'}: no .json file of a multiple-choice task, such as 1_plotQA.json")
    return [_question(folder, task, number, record) for task, number, record in read_tasks(paths)]


def _question(folder: Path, task: str, number: int, record: Record) -> Question:
    options = record.texts("candidates")
    places = (folder / "video" / task, folder / "video" / task.partition("_")[2])
    return Question(
        key=f"{task}-{number}",
        video=FileVideo(find_video(places, record.text("video"))),
        text=record.text("question"),
        options=options,
        answer=record.letter_of_text("answer", options),
        category=record.optional_text("question_type", task),
    )
