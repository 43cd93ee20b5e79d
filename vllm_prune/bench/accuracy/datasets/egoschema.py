"""EgoSchema (Mangalam et al., NeurIPS 2023): questions.json, and subset_answers.json for the 500 answers published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vllm_prune.bench.accuracy.datasets.records import find_video, read_json, read_json_records
from vllm_prune.bench.accuracy.questions import Question, letters
from vllm_prune.bench.accuracy.videos import FileVideo
from vllm_prune.bench.throughput.errors import BenchmarkError

FILES = "questions.json, subset_answers.json, videos/UID.mp4"
NUM_OPTIONS = 5


def load(folder: Path) -> list[Question]:
    """The questions whose answer is in subset_answers.json."""
    path = folder / "subset_answers.json"
    answers = read_json(path)
    if not isinstance(answers, Mapping):
        raise BenchmarkError(f"{path}: holds {type(answers).__name__}; must be an object of q_uid: option number")
    questions = []
    for record in read_json_records(folder / "questions.json"):
        uid = record.text("q_uid")
        if uid not in answers:
            continue
        answer = answers[uid]
        if answer not in range(NUM_OPTIONS) or isinstance(answer, bool):
            raise BenchmarkError(f"{path}, {uid}: {answer!r}: must be an integer from 0 to {NUM_OPTIONS - 1}")
        questions.append(
            Question(
                key=uid,
                video=FileVideo(find_video((folder / "videos", folder / "good_clips_git"), f"{uid}.mp4")),
                text=record.text("question"),
                options=tuple(record.text(f"option {number}") for number in range(NUM_OPTIONS)),
                answer=letters(NUM_OPTIONS)[answer],
            )
        )
    return questions
