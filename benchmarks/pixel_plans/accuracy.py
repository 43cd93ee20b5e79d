"""Accuracy of the embedded model at equal counts: one engine in this process, each request with its own count."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from vllm_prune.bench.accuracy.asking import Answer, Reply, Task, to_answer
from vllm_prune.bench.accuracy.datasets.synthetic import load
from vllm_prune.bench.accuracy.engine import engine_arguments, model_digest
from vllm_prune.bench.accuracy.runner import Plan, run_plan
from vllm_prune.bench.throughput.configurations import Configuration
from vllm_prune.budget import plan_counts
from vllm_prune.embedded import model_path
from vllm_prune.methods.still_cells import StillPlan
from vllm_prune.serving.api import video_pixels
from vllm_prune.serving.api.pixel_plan import plan_video

from . import planned
from .variations import KINDS, LEVELS, ROWS, Variation

DISTURBANCES = ("clean", "noise", "flicker", "drift", "pan")
LENGTHS = (16, 32)
SEEDS = (0, 1, 2)
NOTES = Path(__file__).with_name("accuracy.md")


def run(command: Sequence[str], output: Path, clips: int, resume: bool, name: str) -> None:
    """Asks everything and writes `name` as JSON, Markdown and PNG to the folder `output`.

    Args:
        command: As it was given, for the report.
        output: Folder.
        clips: Of each length and disturbance, for each seed.
        resume: Go on with the answers of an interrupted run.
        name: Of the result's files.
    """
    plan = Plan(
        command=command,
        title="stage 1 on pixels beside others at equal counts",
        dataset="synthetic",
        questions=load(clips, SEEDS, LENGTHS, DISTURBANCES),
        configurations=configurations(),
        baseline="everything",
        backend=SameProcess(),  # type: ignore[arg-type]
        batch=1,
        resume=resume,
        output=output,
        name=name,
        notes=NOTES.read_text(encoding="utf-8") if NOTES.is_file() else "",
    )
    run_plan(plan)


def configurations() -> list[Configuration]:
    """Every kind at its levels, and the unpruned video."""
    rows = [("everything", Variation("everything", ""))]
    rows += [
        (f"{kind}@{level}", Variation(kind, level))
        for level, kind in itertools.product(LEVELS, KINDS)
        if level in ROWS.get(kind, LEVELS)
    ]
    return [Configuration(name=name, given=name, program=(), config=row) for name, row in rows]  # type: ignore[arg-type]


class SameProcess:
    """A backend whose engine runs here, where variations of the code can reach it."""

    def groups(self, rows: Sequence[Configuration]) -> list[list[Configuration]]:
        """All together."""
        return [list(rows)]

    def describe(self) -> dict[str, Any]:
        """The model and its options."""
        return {"model": "embedded", "model_digest": model_digest(model_path()), "engine_arguments": _arguments()}

    @contextlib.contextmanager
    def open(self, group: Sequence[Configuration]) -> Iterator[Engine]:
        """Starts the engine."""
        yield Engine()


def _arguments() -> dict[str, Any]:
    return engine_arguments(True, {})


class Engine:
    """`vllm.LLM` that answers tasks."""

    def __init__(self) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        planned.register()
        from vllm import LLM, SamplingParams

        from vllm_prune.engine import engine_args

        self._llm = LLM(**engine_args(str(model_path()), "baseline", override="any", **_arguments()))
        self._sampling = SamplingParams(temperature=0.0, max_tokens=4)
        self._plans: dict[str, StillPlan] = {}

    def ask(self, batches: Iterable[Sequence[Task]]) -> Iterator[list[Answer]]:
        """Answers, a batch at a time; each batch has one video."""
        for batch in batches:
            frames = batch[0].question.video.frames(max(LENGTHS))
            video = (frames.pixels, frames.metadata())
            self._plans = {level: self._plan(level, batch[0], video) for level in LEVELS}
            by_code = itertools.groupby(sorted(batch, key=_code), key=_code)
            yield [answer for _, tasks in by_code for answer in self._answer(list(tasks), video)]

    def _plan(self, level: str, task: Task, video: Any) -> StillPlan:
        """The plan that the engine itself makes of a video that it has not seen."""
        made: list[StillPlan] = []

        def recording(*args: Any) -> StillPlan:
            made.append(plan_video(*args))
            return made[-1]

        prompt = self._text_and_video(task, video)
        prompt["mm_processor_kwargs"] = {"prune": Variation("pixels", level).base.to_dict()}
        with patch.object(video_pixels, "plan_video", recording):
            self._llm.generate([prompt], self._sampling, use_tqdm=False)
        return made[0]

    def _answer(self, tasks: Sequence[Task], video: Any) -> list[Answer]:
        prompts = [self._prompt(task, video) for task in tasks]
        with tasks[0].configuration.config.code():  # type: ignore[union-attr]
            outputs = self._llm.generate(prompts, self._sampling, use_tqdm=False)
        return [self._judge(task, output) for task, output in zip(tasks, outputs, strict=True)]

    def _text_and_video(self, task: Task, video: Any) -> dict[str, Any]:
        content = [{"type": "video"}, {"type": "text", "text": task.question.prompt()}]
        text = self._llm.get_tokenizer().apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        return {"prompt": text, "multi_modal_data": {"video": [video]}}

    def _prompt(self, task: Task, video: Any) -> dict[str, Any]:
        row: Any = task.configuration.config
        prompt = self._text_and_video(task, video)
        if row.kind != "everything":
            seed = int.from_bytes(hashlib.sha256(task.question.video.key.encode()).digest()[:4], "big")
            prompt["mm_processor_kwargs"] = {"prune": row.request(self._plans[row.level], seed)}
        return prompt

    def _judge(self, task: Task, output: Any) -> Answer:
        row: Any = task.configuration.config
        ids = output.prompt_token_ids
        count = ids.count(self._llm.model_config.hf_config.video_token_id)
        if row.kind != "everything":
            plan = self._plans[row.level]
            wanted = plan_counts(row.base, plan.encoded.numel(), plan.per_frame).kept
            if count != wanted:
                raise AssertionError(f"{task.configuration.name}: {count} tokens where `pixels` has {wanted}")
        return to_answer(task, Reply(output.outputs[0].text, len(ids), count))


def _code(task: Task) -> str:
    """Tasks that run with the same code."""
    kind = task.configuration.config.kind  # type: ignore[union-attr]
    return kind if kind in ("pixels, mean", "pixels, merged only") else ""
