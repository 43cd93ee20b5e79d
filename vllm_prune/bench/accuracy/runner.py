"""The run itself: ask what has not been asked yet, then write the result."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vllm_prune.bench.accuracy import plot, report
from vllm_prune.bench.accuracy.asking import Answer, Backend, Task, identity, make_batches
from vllm_prune.bench.accuracy.log import AnswerLog
from vllm_prune.bench.accuracy.questions import Question
from vllm_prune.bench.accuracy.results import Results
from vllm_prune.bench.needs import draw_if_possible
from vllm_prune.bench.throughput.configurations import Configuration
from vllm_prune.bench.throughput.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a run is told."""

    command: Sequence[str]
    title: str
    dataset: str
    questions: Sequence[Question]
    configurations: Sequence[Configuration]
    baseline: str
    backend: Backend
    batch: int  # requests that are handed over together
    resume: bool
    output: Path  # folder
    name: str  # of the result files, without suffix
    notes: str = ""  # Markdown
    ttft: Mapping[str, float] = field(default_factory=dict)  # milliseconds, by configuration

    @property
    def log(self) -> Path:
        """The file of answers."""
        return self.output / f"{self.name}.answers.jsonl"


def run_plan(plan: Plan) -> Results:
    """Ask everything and write JSON, Markdown and PNG."""
    settings = {"dataset": plan.dataset, **plan.backend.describe()}
    with AnswerLog(plan.log, settings, resume=plan.resume) as log:
        ask_all(plan, log)
        answers = {c.name: _answers(log, c, plan.questions) for c in plan.configurations}
    results = Results(
        {
            "title": plan.title,
            "command": shlex.join(plan.command),
            "sessions": log.sessions,
            "asked_with": settings,
            "seeds": sorted({question.seed for question in plan.questions}),
            "videos": len({question.video.key for question in plan.questions}),
            "notes": plan.notes,
        },
        plan.configurations,
        plan.baseline,
        plan.questions,
        answers,
    )
    write_results(results, plan.output / plan.name, plan.ttft)
    return results


def write_results(results: Results, stem: Path, ttft: Mapping[str, float]) -> None:
    """Write `stem` with the suffixes .json, .md and, where matplotlib is installed, .png."""
    results.write(stem.with_name(f"{stem.name}.json"))
    stem.with_name(f"{stem.name}.md").write_text(report.markdown(results), encoding="utf-8")
    draw_if_possible(plot.draw, results, stem.with_name(f"{stem.name}.png"), ttft)


def ask_all(plan: Plan, log: AnswerLog) -> None:
    """Ask what `log` has no answer to."""
    groups = [(group, _open_tasks(group, plan.questions, log)) for group in plan.backend.groups(plan.configurations)]
    missing = sum(len(tasks) for _, tasks in groups)
    if not missing:
        return
    total = sum(len(group) for group, _ in groups) * len(plan.questions)
    with log.session(plan.command), Progress(total, done=total - missing, unit="answer") as progress:
        for group, tasks in groups:
            if tasks:
                progress.begin(f"{group[0].name if len(group) == 1 else f'{len(group)} configurations'}")
                _ask_group(plan, group, tasks, log, progress)


def _open_tasks(group: Sequence[Configuration], questions: Sequence[Question], log: AnswerLog) -> list[Task]:
    """What is still to be asked; configurations that differ in name only are asked once."""
    distinct = {identity(configuration): configuration for configuration in reversed(group)}
    return [
        Task(configuration, question)
        for key, configuration in reversed(distinct.items())
        for question in questions
        if log.get(key, question) is None
    ]


def _ask_group(
    plan: Plan, group: Sequence[Configuration], tasks: Sequence[Task], log: AnswerLog, progress: Progress
) -> None:
    with plan.backend.open(group) as asker:
        for answers in asker.ask(make_batches(tasks, plan.batch)):
            log.add(answers)
            progress.finish(len(answers))
            progress.tick()


def _answers(log: AnswerLog, configuration: Configuration, questions: Sequence[Question]) -> dict[str, Answer]:
    found = {question.key: log.get(identity(configuration), question) for question in questions}
    return {key: answer for key, answer in found.items() if answer is not None}
