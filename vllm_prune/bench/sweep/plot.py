"""The result of a sweep as a picture: quality against tokens and against time to the first token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm_prune.bench.accuracy.plot import MARKERS
from vllm_prune.bench.sweep.results import Measured, SweepResults


def draw(results: SweepResults, path: Path) -> None:
    """Writes a PNG. Colour: keep_ratio; marker: layer; the line and the rings: the Pareto front."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(15, 5.6), sharey=True, layout="constrained")
    tokens = 100 / results.unpruned.video_tokens
    _draw_panel(axes[0], results, lambda measured: measured.video_tokens * tokens, results.front_by_tokens)
    _draw_panel(axes[1], results, lambda measured: measured.ttft_ms, results.front_by_ttft)
    axes[0].set_xlabel("kept tokens of the video, %")
    axes[1].set_xlabel("time to first token, ms (one request, frames decoded)")
    axes[0].set_ylabel("right answers, %" if results.has_accuracy else "log-probability of the unpruned answer")
    axes[0].set_title(results.settings["title"], loc="left")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _draw_panel(axis: Any, results: SweepResults, cost: Callable[[Measured], float], best: set[str]) -> None:
    from matplotlib import colormaps

    scale = 100 if results.has_accuracy else 1

    def place(measured: Measured) -> tuple[float, float]:
        return cost(measured), scale * results.quality(measured)

    groups: dict[tuple[Any, Any], list[Measured]] = {}
    for measured in results.points:
        assert measured.point is not None
        groups.setdefault((measured.point.keep_ratio, measured.point.layer), []).append(measured)
    keeps, layers = (list(dict.fromkeys(key[place] for key in groups)) for place in (0, 1))
    for (keep, layer), group in groups.items():
        x, y = zip(*map(place, group), strict=True)
        style = {"color": colormaps["tab10"](keeps.index(keep) % 10), "marker": MARKERS[layers.index(layer) % 12]}
        axis.plot(x, y, linestyle="none", markersize=5, alpha=0.65, label=_label(keep, layer), **style)
    front = sorted(place(measured) for measured in results.points if measured.name in best)
    axis.plot(*zip(*front, strict=True), color="black", linewidth=1, zorder=0)
    ring = {"linestyle": "none", "marker": "o", "markersize": 11, "fillstyle": "none", "color": "black"}
    axis.plot(*zip(*front, strict=True), label="Pareto front", **ring)
    unpruned = place(results.unpruned)
    axis.plot(*unpruned, linestyle="none", marker="*", markersize=13, color="black", label="unpruned")
    axis.axhline(unpruned[1], color="grey", linestyle=":", zorder=0)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _label(keep: float | None, layer: int | None) -> str:
    if keep is None:
        return "stage 1 alone"
    return f"keep_ratio {keep:g}" + ("" if layer is None else f" after layer {layer}")
