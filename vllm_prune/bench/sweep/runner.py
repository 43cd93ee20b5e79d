"""The run itself: asks the dataset, probes the one question, writes the result; both parts go on where they ended."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllm_prune.bench.accuracy.asking import Backend, identity
from vllm_prune.bench.accuracy.log import AnswerLog
from vllm_prune.bench.accuracy.questions import Question
from vllm_prune.bench.accuracy.runner import Plan, ask_all
from vllm_prune.bench.accuracy.scores import Score, score
from vllm_prune.bench.needs import draw_if_possible
from vllm_prune.bench.sweep.entries import ANSWER, TTFT, ProbeLog
from vllm_prune.bench.sweep.points import UNPRUNED, Point
from vllm_prune.bench.sweep.probe import Probe
from vllm_prune.bench.sweep.results import SweepResults
from vllm_prune.bench.throughput.configurations import Configuration
from vllm_prune.bench.throughput.progress import Progress


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """Everything that a run is told."""

    command: Sequence[str]
    title: str
    points: Sequence[Point]
    configurations: Sequence[Configuration]
    """The unpruned one, and one for each point."""
    probed: Question
    """What every point is timed with, and asked where there is no dataset."""
    questions: Sequence[Question]
    """Of the dataset; none: agreement with the unpruned answer tells the quality."""
    backend: Backend
    """Asks the dataset."""
    open_probe: Callable[[], Probe]
    settings: dict[str, Any]
    repeats: int
    batch: int
    resume: bool
    output: Path
    name: str


def run_sweep(plan: SweepPlan) -> SweepResults:
    """Does what is not done yet and writes JSON, Markdown and, where matplotlib is installed, PNG."""
    from vllm_prune.bench.sweep import plot, report

    scores, sessions = _ask_dataset(plan) if plan.questions else ({}, [])
    with ProbeLog(plan.output / f"{plan.name}.probe.jsonl", plan.settings, resume=plan.resume) as log:
        _probe(plan, log)
        results = SweepResults(
            settings={
                "title": plan.title,
                "command": shlex.join(plan.command),
                "sessions": [*sessions, *log.sessions],
                "measured_with": plan.settings,
                "probed": {"video": plan.probed.video.key, "question": plan.probed.text},
                "questions": len(plan.questions),
            },
            points=plan.points,
            answers={c.name: log.get(c.name, ANSWER) for c in plan.configurations},
            seconds={c.name: [log.get(c.name, TTFT, r) for r in range(plan.repeats)] for c in plan.configurations},
            scores=scores,
        )
    stem = plan.output / plan.name
    results.write(stem.with_name(f"{stem.name}.json"))
    stem.with_name(f"{stem.name}.md").write_text(report.markdown(results), encoding="utf-8")
    draw_if_possible(plot.draw, results, stem.with_name(f"{stem.name}.png"))
    return results


def _ask_dataset(plan: SweepPlan) -> tuple[dict[str, Score], list[dict[str, Any]]]:
    """Every point's score. The answers are those of `bench accuracy`, in a log of the same kind."""
    accuracy = Plan(
        command=plan.command,
        title=plan.title,
        dataset=plan.settings["dataset"],
        questions=plan.questions,
        configurations=plan.configurations,
        baseline=UNPRUNED,
        backend=plan.backend,
        batch=plan.batch,
        resume=plan.resume,
        output=plan.output,
        name=plan.name,
    )
    with AnswerLog(
        accuracy.log, {"dataset": accuracy.dataset, **plan.backend.describe()}, resume=plan.resume
    ) as answers:
        ask_all(accuracy, answers)
        scores = {}
        for configuration in plan.configurations:
            found = [(question, answers.get(identity(configuration), question)) for question in plan.questions]
            scores[configuration.name] = score([(question, answer) for question, answer in found if answer is not None])
        return scores, answers.sessions


def _probe(plan: SweepPlan, log: ProbeLog) -> None:
    """Asks and times every point; repeats are rounds over all points, so that a slow minute harms all of them alike."""
    jobs = [(configuration, ANSWER, 0) for configuration in plan.configurations]
    jobs += [(configuration, TTFT, repeat) for repeat in range(plan.repeats) for configuration in plan.configurations]
    missing = [job for job in jobs if not log.has(job[0].name, job[1], job[2])]
    if not missing:
        return
    with log.session(plan.command), Progress(len(jobs), done=len(jobs) - len(missing), unit="measurement") as progress:
        progress.begin("starting the engine")
        probe = plan.open_probe()
        for what, repeat in dict.fromkeys((what, repeat) for _, what, repeat in missing):
            progress.begin("answers" if what == ANSWER else f"times, round {repeat + 1}")
            _measure_round(probe, [job for job in missing if job[1:] == (what, repeat)], log, progress)


def _measure_round(
    probe: Probe, jobs: Sequence[tuple[Configuration, str, int]], log: ProbeLog, progress: Progress
) -> None:
    for configuration, what, repeat in jobs:
        log.add(configuration.name, what, _measure(probe, configuration, what, log), repeat)
        progress.finish()
        progress.tick()


def _measure(probe: Probe, configuration: Configuration, what: str, log: ProbeLog) -> Any:
    assert configuration.config is not None
    if what == TTFT:
        return probe.time_first_token(configuration.config)
    said = probe.answer(configuration.config)
    wanted = said.token_ids if configuration.name == UNPRUNED else tuple(log.get(UNPRUNED, ANSWER)["token_ids"])
    return {**asdict(said), "log_probability": probe.log_probability(configuration.config, wanted)}
