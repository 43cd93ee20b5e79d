"""The result as Markdown and as a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from vllm_prune.bench.throughput.provenance import describe_lines
from vllm_prune.bench.throughput.report import table

_FLOOR = "Gram products"
_MISSING = "not measured"
"""By a run that was interrupted."""


def markdown(results: dict[str, Any]) -> str:
    """The whole report."""
    size = results["size"]
    grid = f"{size['frames']} frames of {size['rows']} x {size['columns']}, {size['keep_per_frame']} kept of each"
    introduction = (
        f"{size['tokens']} tokens ({grid}), {size['dim']} channels of {results['dtype']}, on {results['device']} with "
        f"{results['threads']} thread(s). Times, by the {results['clock']} clock, are mean ± standard error over "
        f"{results['repeats']} repeats; memory is the most that was held beyond the input. Ratios use the best repeat. "
        "`reference` is the plain version, one frame or segment after the other; `vLLM` is vLLM's own function in the "
        "same process; `floor` is the products or distances alone."
    )
    parts = ["# Time and memory of the methods", introduction, _main_table(results["main"])]
    if results["sweep"]:
        parts += ["## Growth with the length of the video", _sweep_table(results["sweep"])]
    if results["approximations"]:
        parts += ["## What the modes of the DPP lose", _approximations_table(results["approximations"])]
    return "\n\n".join([*parts, "## How it was measured", _provenance(results)]) + "\n"


def _main_table(rows: list[dict[str, Any]]) -> str:
    floor = next(row["best"] for row in rows if row["name"] == _FLOOR)
    own = {row["name"]: row["best"] for row in rows if row["kind"] == "method"}
    lines = []
    for row in rows:
        compared = row["kind"] in ("reference", "vLLM")
        ratio = f"ours takes {own[row['name']] / row['best']:.2f}x of it" if compared else f"{row['best'] / floor:.2f}"
        seconds = f"{row['mean'] * 1e3:.1f} ± {row['standard_error'] * 1e3:.1f}"
        memory = f"{row['peak_bytes'] / 2**20:.1f}"
        lines.append([f"{row['name']} ({row['kind']})", seconds, f"{row['best'] * 1e3:.1f}", memory, ratio])
    return table(["what", "ms", "best ms", "peak MiB", "÷ Gram products"], lines)


def _sweep_table(rows: list[dict[str, Any]]) -> str:
    counts = sorted({row["tokens"] for row in rows})
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = {row["tokens"]: row for row in rows if row["name"] == name}
        times = [f"{mine[count]['best'] * 1e3:.1f}" if count in mine else _MISSING for count in counts]
        peak = f"{mine[counts[-1]]['peak_bytes'] / 2**20:.0f}" if counts[-1] in mine else _MISSING
        lines.append([name, *times, growth([(count, mine[count]["best"]) for count in counts if count in mine]), peak])
    header = [*(f"{count} tokens, ms" for count in counts), "exponent", f"peak MiB at {counts[-1]}"]
    note = (
        "Best of the repeats. Exponent p of time ~ tokens^p between the last two sizes; frames grow, tokens per frame "
        "do not."
    )
    return f"{note}\n\n{table(['method', *header], lines)}"


def _approximations_table(rows: list[dict[str, Any]]) -> str:
    choices = [name for name in rows[0] if name not in ("tokens", "kept", "exact")]
    lines = []
    for row in rows:
        gaps = [f"{row[name] - row['exact']:+.2f}" for name in choices]
        lines.append([str(row["tokens"]), str(row["kept"]), f"{row['exact']:.2f}", *gaps])
    note = (
        "One segment of so many tokens with a random relevance: the log-determinant of the exact greedy choice, and "
        "the gap to it of the cheaper modes and of choices that look at relevance, or at nothing, alone."
    )
    return f"{note}\n\n{table(['tokens', 'kept', 'exact', *choices], lines)}"


def growth(points: list[tuple[int, float]]) -> str:
    """The exponent of time in tokens between the last two of (tokens, seconds).

    >>> growth([(10, 1.0), (20, 4.0)])
    '2.00'
    """
    if len(points) < 2:
        return "one size only"
    (few, short), (many, long) = points[-2:]
    return f"{math.log(long / short) / math.log(many / few):.2f}"


def _provenance(results: dict[str, Any]) -> str:
    lines = [
        f"Command: `{results['command']}`",
        f"When: {results['started']}",
        *describe_lines(results["provenance"]),
        f"Input: Gaussian noise, a share of {results['still']} of the cells nearly still, seed {results['seed']}",
    ]
    return "\n".join(f"- {line}" for line in lines)


def draw(results: dict[str, Any], path: Path) -> None:
    """Write a PNG: time of everything at one size, and time of the methods against tokens if that was measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = 2 if results["sweep"] else 1
    figure, axes = pyplot.subplots(1, panels, figsize=(7 * panels, 6), constrained_layout=True, squeeze=False)
    _draw_bars(axes[0][0], results)
    if results["sweep"]:
        _draw_growth(axes[0][1], results["sweep"])
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _draw_bars(axis: Any, results: dict[str, Any]) -> None:
    colours = {"method": "tab:blue", "reference": "tab:orange", "vLLM": "tab:green", "floor": "tab:gray"}
    rows = results["main"][::-1]
    labels = [f"{row['name']} ({row['kind']})" for row in rows]
    means, errors = [row["mean"] * 1e3 for row in rows], [row["standard_error"] * 1e3 for row in rows]
    axis.barh(labels, means, xerr=errors, capsize=2, color=[colours[row["kind"]] for row in rows])
    axis.set_xscale("log")
    axis.set_xlabel("milliseconds")
    axis.set_title(f"{results['size']['tokens']} tokens, {results['size']['dim']} channels, {results['device']}")
    axis.spines[["top", "right"]].set_visible(False)


def _draw_growth(axis: Any, rows: list[dict[str, Any]]) -> None:
    for index, name in enumerate(dict.fromkeys(row["name"] for row in rows)):
        mine = sorted((row["tokens"], row["best"]) for row in rows if row["name"] == name)
        axis.loglog(*zip(*mine, strict=True), marker="os^v"[index // 10], label=name)
    axis.set_xlabel("tokens")
    axis.set_ylabel("seconds")
    axis.legend(frameon=False, fontsize="small")
    axis.grid(alpha=0.3)
