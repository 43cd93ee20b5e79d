"""The time line of one configuration: temporal segments, and how many tokens each step of the grid keeps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from vllm_prune.show.canvas import RULE, Canvas, Colour
from vllm_prune.show.story import Panel

HEIGHT = 46
_BARS, _SEGMENTS = 26, 14
BAR: Colour = (52, 110, 214)
BAR_OFF: Colour = (170, 186, 214)
SHADES: tuple[Colour, Colour] = ((232, 178, 84), (250, 220, 160))
_SMALL = 11


def draw_timeline(canvas: Canvas, x: float, y: float, width: float, panel: Panel, shown: Sequence[int]) -> None:
    """At (x, y), `HEIGHT` high: bars of kept tokens, those of the steps `shown` darker; segments below."""
    kept = panel.cells.kept_per_step
    steps = len(kept)
    canvas.box(x, y + _BARS, width, 1, fill=RULE)
    for step, count in enumerate(kept.tolist()):
        left, right = x + width * step / steps, x + width * (step + 1) / steps
        tall = (_BARS - 2) * count / max(1, int(kept.max()))
        canvas.box(left + 1, y + _BARS - tall, right - left - 2, tall, fill=BAR if step in shown else BAR_OFF)
    if panel.cells.segment is not None:
        _draw_segments(canvas, x, y + _BARS + 3, width, panel.cells.segment)


def _draw_segments(canvas: Canvas, x: float, y: float, width: float, segment: np.ndarray) -> None:
    bounds = [0, *(np.flatnonzero(np.diff(segment)) + 1).tolist(), len(segment)]
    for number, (first, last) in enumerate(itertools.pairwise(bounds)):
        left, right = x + width * first / len(segment), x + width * last / len(segment)
        canvas.box(left + 1, y, right - left - 2, _SEGMENTS, fill=SHADES[number % 2])
        names = (f"segment {number + 1}", str(number + 1))
        name = next((name for name in names if canvas.measure(name, _SMALL) <= right - left - 6), None)
        if name is not None:  # else there is no room for any
            canvas.text((left + right) / 2, y + _SEGMENTS / 2, name, _SMALL, colour=(92, 62, 8), anchor="mm")
