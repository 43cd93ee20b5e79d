"""The result as a picture: accuracy against tokens kept, a line for each method; beside it against TTFT, if known."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_prune.bench.accuracy import series
from vllm_prune.bench.accuracy.results import Results
from vllm_prune.bench.throughput.errors import BenchmarkError

MARKERS = "osD^v<>Pp*Xh"
CLOSEST = 0.8  # ratio of neighbouring ticks


def read_ttft(path: Path) -> dict[str, float]:
    """Mean TTFT in milliseconds by configuration, from a result of `bench throughput` (the fewest clients)."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))["summary"]
        fewest = min(entry["clients"] for entry in summary)
        chosen = [entry for entry in summary if entry["clients"] == fewest]
        return {entry["configuration"]: float(entry["metrics"]["ttft_mean_ms"]["mean"]) for entry in chosen}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"--ttft {path}: not a result of `vllm-prune bench throughput`: {error!r}") from error


def draw(results: Results, path: Path, ttft: Mapping[str, float] | None = None) -> None:
    """Write a PNG; error bars are standard errors."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: list[tuple[str, Callable[[str], float | None]]] = [("kept tokens of the video, %", _share(results))]
    if ttft:
        panels.append(("time to first token, ms", ttft.get))
    figure = pyplot.figure(figsize=(2 + 7 * len(panels), 5.5), layout="constrained")
    axes = [figure.add_subplot(1, len(panels), place) for place in range(1, len(panels) + 1)]
    for axis, (label, place_of) in zip(axes, panels, strict=True):
        _draw_panel(axis, results, place_of)
        axis.set_xlabel(label)
    axes[0].set_ylabel("right answers, %")
    axes[0].set_title(results.settings["title"], loc="left")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _share(results: Results) -> Callable[[str], float | None]:
    def place_of(name: str) -> float | None:
        share = results.share_kept(name)
        return None if share is None else 100 * share

    return place_of


def _draw_panel(axis: Any, results: Results, place_of: Callable[[str], float | None]) -> None:
    """Methods with budgets are lines; what else there is, are black points."""
    from matplotlib import colormaps

    colours = colormaps["tab10"]
    for index, (method, names) in enumerate(series.methods(results.names).items()):
        line = "-" if index < 10 else "--"
        _draw_line(axis, results, place_of, method, names, index, color=colours(index % 10), linestyle=line)
    alone = [name for name in results.names if series.budget_of(name) is None]
    for index, name in enumerate(alone):
        _draw_line(axis, results, place_of, name, [name], index, color="black", linestyle="none", fillstyle="none")
    axis.axhline(100 * results.scores[results.baseline].accuracy.mean, color="grey", linestyle=":", zorder=0)
    axis.set_xscale("log")
    places = [round(place, 1) for name in results.names if (place := place_of(name)) is not None]
    axis.set_xticks(shown := choose_ticks(places), [f"{place:g}" for place in shown])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_line(
    axis: Any,
    results: Results,
    place_of: Callable[[str], float | None],
    label: str,
    names: Sequence[str],
    index: int,
    **style: Any,
) -> None:
    points = sorted((place, name) for name in names if (place := place_of(name)) is not None)
    accuracies = [results.scores[name].accuracy for _, name in points]
    axis.errorbar(
        [place for place, _ in points],
        [100 * accuracy.mean for accuracy in accuracies],
        yerr=[100 * (accuracy.standard_error or 0.0) for accuracy in accuracies],
        marker=MARKERS[index % len(MARKERS)],
        capsize=2,
        markersize=5,
        label=label,
        **style,
    )


def choose_ticks(places: Sequence[float]) -> list[float]:
    """Those of `places` to be labelled on a logarithmic axis: the most frequent first, none too close to another.

    >>> choose_ticks([6.0, 6.0, 6.8, 25.0, 100.0])
    [6.0, 25.0, 100.0]
    """
    shown: list[float] = []
    for place in sorted(set(places), key=lambda place: (-places.count(place), place)):
        if all(min(place, other) <= CLOSEST * max(place, other) for other in shown):
            shown.append(place)
    return sorted(shown)
