"""The result of a sweep as Markdown: the Pareto front, and what every value of every parameter gives on average."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from vllm_prune.bench.sweep.results import Measured, SweepResults
from vllm_prune.bench.throughput.provenance import describe_lines
from vllm_prune.bench.throughput.report import table

AXES = ("tau", "cluster_ratio", "temporal_segment_ratio", "keep_ratio", "layer")
_HEADER = (
    "video tokens",
    "of all",
    "TTFT, ms",
    "of unpruned",
    "says what the unpruned one says",
    "its log-probability",
)


def markdown(results: SweepResults) -> str:
    """The whole report."""
    parts = [f"# Sweep: {results.settings['title']}", _introduction(results)]
    best = results.front_by_tokens | results.front_by_ttft
    chosen = sorted((m for m in results.points if m.name in best), key=lambda measured: measured.video_tokens)
    header = [*AXES, *_HEADER, *(["right answers, %"] if results.has_accuracy else []), "front"]
    rows = [["unpruned", *("" for _ in AXES[1:]), *_cells(results, results.unpruned), ""]]
    rows += [[*_values(measured), *_cells(results, measured), _fronts(results, measured)] for measured in chosen]
    parts += ["## What nothing beats", table(header, rows)]
    parts += ["## Means over all points with a value", _means(results)]
    parts += ["## How it was measured", _provenance(results)]
    return "\n\n".join(parts) + "\n"


def _introduction(results: SweepResults) -> str:
    asked = results.settings["probed"]
    quality = (
        f"right answers to {results.settings['questions']} questions"
        if results.has_accuracy
        else "log-probability of the unpruned model's answer"
    )
    return (
        f"{len(results.points)} points. A point is on a Pareto front where no other has at most its cost and at least "
        f"its quality ({quality}). TTFT is the median time from decoded frames to the first token, one request at a "
        f"time, of: “{asked['question']}”."
    )


def _values(measured: Measured) -> list[str]:
    values = [getattr(measured.point, axis) for axis in AXES]
    return ["-" if value is None else f"{value:g}" for value in values]


def _cells(results: SweepResults, measured: Measured) -> list[str]:
    unpruned = results.unpruned
    cells = [
        f"{measured.video_tokens:.0f}",
        f"{measured.video_tokens / unpruned.video_tokens:.0%}",
        f"{measured.ttft_ms:.0f}",
        f"{measured.ttft_ms / unpruned.ttft_ms:.2f}",
        "yes" if measured.agrees else f"no: {measured.answer}",
        f"{measured.log_probability:.3g}",
    ]
    if measured.accuracy is not None:
        error = f" ± {100 * measured.standard_error:.1f}" if measured.standard_error is not None else ""
        cells.append(f"{100 * measured.accuracy:.1f}{error}")
    return cells


def _fronts(results: SweepResults, measured: Measured) -> str:
    named = (("tokens", results.front_by_tokens), ("TTFT", results.front_by_ttft))
    return ", ".join(what for what, names in named if measured.name in names)


def _means(results: SweepResults) -> str:
    rows = []
    for axis in AXES:
        for value in dict.fromkeys(getattr(measured.point, axis) for measured in results.points):
            group = [measured for measured in results.points if getattr(measured.point, axis) == value]
            rows.append([axis, _label(axis, value), str(len(group)), *_mean_cells(results, group)])
    quality = ["right answers, %"] if results.has_accuracy else []
    return table(["parameter", "value", "points", "video tokens", "TTFT, ms", "log-probability", *quality], rows)


def _label(axis: str, value: float | None) -> str:
    if value is not None:
        return f"{value:g}"
    return "stage 1 alone" if axis == "keep_ratio" else "none, or the default"


def _mean_cells(results: SweepResults, group: Sequence[Measured]) -> list[str]:
    cells = [
        f"{statistics.mean(measured.video_tokens for measured in group):.0f}",
        f"{statistics.mean(measured.ttft_ms for measured in group):.0f}",
        f"{statistics.mean(measured.log_probability for measured in group):.3g}",
    ]
    if results.has_accuracy:
        cells.append(f"{100 * statistics.mean(measured.accuracy or 0.0 for measured in group):.1f}")
    return cells


def _provenance(results: SweepResults) -> str:
    sessions = results.settings["sessions"]
    last, seconds = sessions[-1], sum(session["seconds"] for session in sessions)
    lines = [
        f"Command: `{results.settings['command']}`, in {len(sessions)} session(s) of {seconds:.0f} s in all",
        f"When: {last['started']}",
        *describe_lines(last),
        f"Settings: `{results.settings['measured_with']}`",
    ]
    return "\n".join(f"- {line}" for line in lines)
