"""Video-MME (Fu et al., CVPR 2025): a Parquet file, or its export to JSON Lines, and a video for each videoID."""

from __future__ import annotations

import re
from pathlib import Path

from vllm_prune.bench.accuracy.datasets.records import (
    Record,
    find_file,
    find_video,
    read_json_lines,
    read_parquet,
)
from vllm_prune.bench.accuracy.questions import Question
from vllm_prune.bench.accuracy.videos import FileVideo

FILES = "videomme/test-*.parquet (or a .jsonl export of it), data/VIDEOID.mp4"
_LETTER = re.compile(r"^\s*[A-Z][.)]\s*")


def load(folder: Path) -> list[Question]:
    """All questions, without subtitles."""
    path = find_file(folder, "*.jsonl", "videomme/*.jsonl", "videomme/*.parquet", "*.parquet")
    records = read_json_lines(path) if path.suffix == ".jsonl" else read_parquet(path)
    return [_question(folder, record) for record in records]


def _question(folder: Path, record: Record) -> Question:
    # Published with their letters: "A. Apples."
    options = tuple(_LETTER.sub("", option) for option in record.texts("options"))
    places = (folder / "data", folder / "video", folder / "videos")
    return Question(
        key=record.text("question_id"),
        video=FileVideo(find_video(places, f"{record.text('videoID')}.mp4")),
        text=record.text("question"),
        options=options,
        answer=record.letter("answer", len(options)),
        category=record.text("task_type"),
        subset=record.text("duration"),
    )
