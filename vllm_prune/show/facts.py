"""What a picture tells, as text and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from vllm_prune.show.cells import State
from vllm_prune.show.story import Panel, Story

_NAMES = {
    "kept": "alone",
    "merged": "in merged tokens",
    "dropped": "dropped before the model",
    "unasked": "dropped by the question",
}


def describe(story: Story) -> dict[str, Any]:
    """All of it, JSON-ready; `per_step` lists have one entry for each step of the grid."""
    return {
        "video": story.frames.name,
        "frames": len(story.frames.images),
        "frames_per_step": story.frames_per_step,
        "seconds_per_step": [round(story.second_of(step), 3) for step in range(story.grid[0])],
        "grid": list(story.grid),
        "question": story.question,
        "configurations": [_describe_panel(panel) for panel in story.panels],
    }


def _describe_panel(panel: Panel) -> dict[str, Any]:
    cells = panel.cells
    return {
        "label": panel.label,
        "configuration": panel.config.to_dict(),
        "tokens": [{"where": where, "count": int(count)} for where, count in panel.counts],
        "structure": panel.structure,
        "kept_share": round(panel.kept_share, 4),
        "cells": count_states(panel),
        "kept_per_step": cells.kept_per_step.tolist(),
        "segment_per_step": None if cells.segment is None else cells.segment.tolist(),
        "answer": panel.answer,
        "seconds": None if panel.seconds is None else round(panel.seconds, 3),
    }


def count_states(panel: Panel) -> dict[str, int]:
    """Cells of the grid by what became of them: kept, merged, dropped, unasked."""
    counts = np.bincount(panel.cells.state.ravel(), minlength=len(State))
    return {state.name.lower(): int(counts[state]) for state in State}


def lines(panel: Panel) -> Iterator[str]:
    """The facts that the one-line summary leaves out."""
    states = count_states(panel)
    yield "cells: " + ", ".join(f"{states[state]} {what}" for state, what in _NAMES.items() if states[state])
    yield f"kept in each step: {' '.join(map(str, panel.cells.kept_per_step))}"
    if panel.cells.segment is not None:
        yield f"segment of each step: {' '.join(map(str, panel.cells.segment))}"
