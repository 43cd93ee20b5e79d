"""The result as a picture: bars of TTFT, requests a second and KV blocks, by server and number of clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_prune.bench.throughput.metrics import BY_KEY
from vllm_prune.bench.throughput.results import Results

PANELS = ("ttft_mean_ms", "requests_per_s", "kv_blocks_peak")


def draw(results: Results, path: Path) -> None:
    """Write a PNG with one panel for each metric; error bars are standard errors over repeats."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(4.6 * len(PANELS), 4.2), constrained_layout=True)
    for axis, key in zip(axes, PANELS, strict=True):
        _draw_panel(axis, results, key)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(results.settings["title"])
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _draw_panel(axis: Any, results: Results, key: str) -> None:
    names, width = results.names(), 0.8 / len(results.names())
    for index, name in enumerate(names):
        found = [(place, results.estimate(name, clients, key)) for place, clients in enumerate(results.clients)]
        points = [(place, value) for place, value in found if value]
        axis.bar(
            [place + (index - (len(names) - 1) / 2) * width for place, _ in points],
            [value.mean for _, value in points],
            width,
            yerr=[value.standard_error or 0.0 for _, value in points],
            capsize=3,
            label=name,
        )
    axis.set_xticks(range(len(results.clients)), [f"{clients} client(s)" for clients in results.clients])
    axis.set_title(BY_KEY[key].title)
    axis.spines[["top", "right"]].set_visible(False)
