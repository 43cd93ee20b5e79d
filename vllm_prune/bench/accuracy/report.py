"""The result as Markdown: methods against budgets, every configuration beside the baseline, categories, subsets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vllm_prune.bench.accuracy import series
from vllm_prune.bench.accuracy.asking import identity
from vllm_prune.bench.accuracy.results import Results
from vllm_prune.bench.accuracy.scores import Difference, Score
from vllm_prune.bench.throughput.aggregate import Estimate
from vllm_prune.bench.throughput.report import table

UNKNOWN = "not told"


def markdown(results: Results) -> str:
    """The whole report."""
    parts = [f"# Accuracy: {results.settings['title']}", _introduction(results)]
    if results.settings["notes"]:
        parts.append(results.settings["notes"])
    if len(series.budgets(results.names)) > 1:
        parts += ["## Methods by budget", _budget_table(results, lambda name: results.scores.get(name))]
    parts += ["## Beside the baseline", _baseline_table(results)]
    if len(results.categories) > 1:
        parts += ["## By kind of question", _group_table(results, results.categories, results.by_category)]
    if len(results.subsets) > 1:
        parts += [f"## By kind of {results.media}", _group_table(results, results.subsets, results.by_subset)]
        if len(series.budgets(results.names)) > 1:
            parts += [f"<details><summary>Methods by budget, for each kind of {results.media}</summary>"]
            for subset in results.subsets:
                parts += [f"### {subset}", _budget_table(results, _of_subset(results, subset))]
            parts += ["</details>"]
    parts += ["## How it was measured", _provenance(results)]
    return "\n\n".join(parts) + "\n"


def _introduction(results: Results) -> str:
    score = results.scores[results.baseline]
    seeds = results.settings["seeds"]
    errors = f"standard error over {len(seeds)} samples" if len(seeds) > 1 else "standard error over scenes"
    return (
        f"Right answers in per cent ± {errors}, on {score.questions} questions about "
        f"{results.settings['videos']} {results.media}s. Differences are to `{results.baseline}`, question by "
        "question, in points, with their 95% confidence interval (bootstrap over scenes). In bold: the best mean of a "
        "column."
    )


def _of_subset(results: Results, subset: str) -> Callable[[str], Score | None]:
    return lambda name: results.by_subset[name][subset] if name in results.by_subset else None


def _budget_table(results: Results, score_of: Callable[[str], Score | None]) -> str:
    """A row for each method, a column for each budget; the baseline first."""
    budgets = series.budgets(results.names)
    rows: list[tuple[str, list[Estimate | None]]] = []
    for method in series.methods(results.names):
        scores = [score_of(f"{method}@{budget}") for budget in budgets]
        rows.append((method, [score.accuracy if score else None for score in scores]))
    baseline = score_of(results.baseline)
    assert baseline is not None
    header = ["method", *budgets]
    first = [f"`{results.baseline}` (all tokens)", *[per_cent(baseline.accuracy)] * len(budgets)]
    return table(header, [first, *_with_best(rows)])


def _with_best(rows: Sequence[tuple[str, Sequence[Estimate | None]]]) -> list[list[str]]:
    """Cells, the best of each column in bold."""
    columns = zip(*(values for _, values in rows), strict=True)
    best = [max((value.mean for value in column if value), default=None) for column in columns]
    return [
        [f"`{name}`", *(_cell(value, top) for value, top in zip(values, best, strict=True))] for name, values in rows
    ]


def _cell(value: Estimate | None, best: float | None) -> str:
    if value is None:
        return "-"
    return f"**{per_cent(value)}**" if value.mean == best else per_cent(value)


def per_cent(value: Estimate) -> str:
    """As in the tables: `93.1 ± 0.4`."""
    error = None if value.standard_error is None else 100 * value.standard_error
    return Estimate(mean=100 * value.mean, standard_error=error, n=value.n).text(1)


def _baseline_table(results: Results) -> str:
    header = [
        "configuration",
        "prompt tokens",
        f"{results.media} tokens",
        "kept",
        "accuracy",
        "difference",
        "gained / lost",
    ]
    return table(header, [_baseline_row(results, name) for name in results.names])


def _baseline_row(results: Results, name: str) -> list[str]:
    score, share = results.scores[name], results.share_kept(name)
    return [
        f"`{name}`",
        f"{score.prompt_tokens:.0f}",
        UNKNOWN if score.video_tokens is None else f"{score.video_tokens:.1f}",
        UNKNOWN if share is None else f"{share:.1%}",
        per_cent(score.accuracy),
        *_difference_cells(results.differences.get(name)),
    ]


def _difference_cells(difference: Difference | None) -> list[str]:
    if difference is None:
        return ["baseline", "-"]
    low, high = 100 * difference.low, 100 * difference.high
    return [f"{100 * difference.mean:+.1f} [{low:+.1f}, {high:+.1f}]", f"{difference.gained} / {difference.lost}"]


def _group_table(results: Results, groups: Sequence[str], scores: Mapping[str, Mapping[str, Score]]) -> str:
    counts = [f"{group} (n={scores[results.baseline][group].questions})" for group in groups]
    rows = [[f"`{name}`", *(per_cent(scores[name][group].accuracy) for group in groups)] for name in results.names]
    return table(["configuration", *counts], rows)


def _provenance(results: Results) -> str:
    settings = results.settings
    unreadable = {name: score.unreadable for name, score in results.scores.items() if score.unreadable}
    lines = [
        f"- Command: `{settings['command']}`",
        *(line for session in settings["sessions"] for line in _session(session, settings["command"])),
        f"- Asked: {', '.join(f'{key} {value}' for key, value in settings['asked_with'].items())}",
        f"- Samples: seeds {', '.join(map(str, settings['seeds']))}",
        f"- Replies that name no option: {unreadable or 'none'}",
        "- Configurations:",
        *(f"  - `{configuration.name}`: `{identity(configuration)}`" for configuration in results.configurations),
    ]
    return "\n".join(lines)


def _session(session: Mapping[str, Any], command: str) -> list[str]:
    machine = session["machine"]
    gpus = f"; GPUs: {', '.join(machine['gpus'])}" if machine["gpus"] else "; no GPU"
    return [
        f"- {session['answers']} answers in {session['seconds']:.0f} s from {session['started']}, on "
        f"{machine['cpu_cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB{gpus}; load average before it "
        f"{machine['load_average_at_start']}",
        *([f"  - Asked by: `{session['command']}`"] if session["command"] != command else []),
        f"  - Versions: {', '.join(f'{name} {version}' for name, version in session['versions'].items())}",
        f"  - Commit: {session['commit'] or 'not a git checkout'}; SHA-256 of the code {session['source_sha256'][:16]}",
    ]
