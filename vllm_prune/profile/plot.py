"""Profiles as a picture: a bar for each configuration and question, made of its stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vllm_prune.profile.measure import Profile
from vllm_prune.profile.report import mean_seconds
from vllm_prune.profile.stages import STAGES

_SMALLEST_LABEL = 0.05
"""Share of the longest bar from which on a stage is labelled with its milliseconds."""


def draw(profiles: Sequence[Profile], path: Path, title: str) -> None:
    """Writes a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import colormaps, pyplot

    bars = [
        (f"{profile.label}\n{what} question", mean_seconds(requests))
        for profile in profiles
        for what, requests in (("first", profile.first), ("second", profile.second))
    ]
    longest = 1000 * max(sum(seconds.values()) for _, seconds in bars)
    figure, axis = pyplot.subplots(figsize=(12, 1.6 + 0.62 * len(bars)), layout="constrained")
    left = [0.0] * len(bars)
    for index, stage in enumerate(STAGES):
        widths = [1000 * seconds[stage] for _, seconds in bars]
        if not any(widths):
            continue
        drawn = axis.barh(range(len(bars)), widths, left=left, label=stage, color=colormaps["tab20"](index))
        labels = [f"{width:.0f}" if width > _SMALLEST_LABEL * longest else "" for width in widths]
        axis.bar_label(drawn, labels, label_type="center", fontsize=8)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axis.set_yticks(range(len(bars)), [name for name, _ in bars])
    axis.invert_yaxis()
    axis.set_xlabel("ms")
    axis.set_title(title, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
