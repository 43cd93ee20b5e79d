"""A user's own questions: a JSON Lines file, one object a line.

    {"video": "clips/a.mp4", "question": "Which colour?", "options": ["red", "blue"], "answer": "B"}

`image` in place of `video` names a picture. `answer` is an option's letter or text; without `options`, the word that is
expected. Further fields, all optional: `category`, `id`, and of a video `start` and `end` (seconds).
"""

from __future__ import annotations

from pathlib import Path

from vllm_prune.bench.accuracy.datasets.records import Record, read_json_lines
from vllm_prune.bench.accuracy.pictures import FilePicture
from vllm_prune.bench.accuracy.questions import Question, letters
from vllm_prune.bench.accuracy.videos import FileVideo


def load(path: Path, folder: Path) -> list[Question]:
    """All questions of `path`; videos are relative to `folder`."""
    return [_question(folder, number, record) for number, record in enumerate(read_json_lines(path), 1)]


def _question(folder: Path, number: int, record: Record) -> Question:
    options = record.texts("options") if "options" in record.fields else ()
    return Question(
        key=record.optional_text("id", str(number)),
        video=_medium(record, folder),
        text=record.text("question"),
        options=options,
        answer=_answer(record, options),
        category=record.optional_text("category", "all"),
    )


def _medium(record: Record, folder: Path) -> FileVideo | FilePicture:
    if record.fields.get("image") is None:
        path = folder / record.text("video")
        return FileVideo(path, record.optional_number("start"), record.optional_number("end"))
    for other in ("video", "start", "end"):
        if record.fields.get(other) is not None:
            raise record.error(other, "a question is about a video or an image; leave this out")
    return FilePicture(folder / record.text("image"))


def _answer(record: Record, options: tuple[str, ...]) -> str:
    answer = record.text("answer")
    if not options:
        return answer
    if len(answer) == 1 and answer.upper() in letters(len(options)) and answer not in options:
        return answer.upper()
    return record.letter_of_text("answer", options)
