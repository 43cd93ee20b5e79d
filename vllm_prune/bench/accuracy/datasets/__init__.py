"""Questions from the files in which datasets are published, by name; a reader is imported when it is asked for."""

from __future__ import annotations

import importlib
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vllm_prune.bench.accuracy.pictures import FilePicture
from vllm_prune.bench.accuracy.questions import Question
from vllm_prune.bench.accuracy.videos import FileVideo, FrameFolder
from vllm_prune.bench.throughput.errors import BenchmarkError

SYNTHETIC, LONG, PAGES = "synthetic", "long", "pages"
CLIPS = (SYNTHETIC, LONG)
MADE = (*CLIPS, PAGES)
"""Made on the fly: clips, and pictures."""
PUBLISHED = ("egoschema", "mvbench", "videomme", "mlvu", "longvideobench", "docvqa", "gqa")
"""Each is a module of this package with `load(folder) -> list[Question]` and `FILES`, what it reads there."""


def load_published(name: str, folder: Path, *, skip_missing: bool = False) -> list[Question]:
    """All questions of a published dataset, or of a file of questions (`name` is then its path).

    Args:
        name: One of `PUBLISHED`, or the path of a .jsonl file (see `question_file`).
        folder: Where the dataset lies; for a .jsonl file, where its videos and pictures do.
        skip_missing: Leave out questions whose video or picture is not there.

    Raises:
        BenchmarkError: Unknown name, or files missing or in another format.
    """
    if name in PUBLISHED:
        module = importlib.import_module(f"{__name__}.{name}")
        if not folder.is_dir():
            raise BenchmarkError(f"--data {folder}: no such folder; {name} needs there: {module.FILES}")
        questions = module.load(folder)
    elif Path(name).is_file():
        from vllm_prune.bench.accuracy.datasets import question_file

        questions = question_file.load(Path(name), folder)
    else:
        known = ", ".join((*MADE, *PUBLISHED))
        raise BenchmarkError(f"--dataset {name!r}: neither a known dataset ({known}) nor a file of questions")
    if not questions:
        raise BenchmarkError(f"--dataset {name}: no question in {folder}")
    _require_distinct(name, questions)
    return _with_videos(questions, skip_missing)


def _require_distinct(name: str, questions: Sequence[Question]) -> None:
    seen: set[str] = set()
    for question in questions:
        if question.key in seen:
            raise BenchmarkError(f"--dataset {name}: question {question.key!r} comes twice; remove one of them")
        seen.add(question.key)


def _with_videos(questions: list[Question], skip_missing: bool) -> list[Question]:
    """The questions whose video or picture is there; all of them must be, unless `skip_missing`."""
    paths = {q.video.path for q in questions if isinstance(q.video, FileVideo | FrameFolder | FilePicture)}
    missing = {path for path in paths if not path.exists()}
    if not missing:
        return questions
    if not skip_missing or len(missing) == len(paths):
        remedy = "download them" + ("" if skip_missing else ", or leave their questions out with --skip-missing")
        raise BenchmarkError(f"{len(missing)} of {len(paths)} files are missing, such as {min(missing)}; {remedy}")
    return [question for question in questions if getattr(question.video, "path", None) not in missing]


def draw_samples(questions: Sequence[Question], n: int | None, seeds: Sequence[int]) -> list[Question]:
    """For each seed `n` questions (None: all, for one seed), no question in two samples.

    The questions are shuffled once, always alike; the k-th seed's sample does not depend on which others are asked for,
    provided that they are the numbers from 0.
    """
    if n is None:
        if len(seeds) > 1:
            raise BenchmarkError(f"--seeds {' '.join(map(str, seeds))}: several samples need their size; give --n")
        return [replace(question, seed=seeds[0]) for question in questions]
    if n * (max(seeds) + 1) > len(questions):
        raise BenchmarkError(
            f"--n {n} --seeds {' '.join(map(str, seeds))}: sample {max(seeds)} would end at question "
            f"{n * (max(seeds) + 1)} of {len(questions)}; give a smaller --n, or seeds from 0"
        )
    order = list(range(len(questions)))
    random.Random(0).shuffle(order)
    return [replace(questions[i], seed=seed) for seed in seeds for i in order[seed * n : (seed + 1) * n]]
