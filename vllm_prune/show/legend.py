"""The legend of a sheet: samples and words, in as many lines as the width takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vllm_prune.show.canvas import Canvas
from vllm_prune.show.cells import Cells, State
from vllm_prune.show.paint import heat_colours, paint_cells
from vllm_prune.show.story import Story
from vllm_prune.show.timeline import BAR, SHADES

LINE_HEIGHT = 26
_SIZE, _TEXT, _SPACE = 16, 12, 26


@dataclass(frozen=True)
class Entry:
    """A sample of `width` pixels, drawn at a point, and what it means."""

    words: str
    width: int
    draw: Callable[[Canvas, float, float], None]


def list_entries(story: Story) -> list[Entry]:
    """What occurs in the sheet of `story`."""
    cells = [panel.cells for panel in story.panels]
    entries = [
        Entry("kept alone", 2 * _SIZE, _draw_state(State.KEPT)),
        Entry("merged: cells of one colour and number share a token, at the dot", 2 * _SIZE, _draw_state(State.MERGED)),
        Entry("dropped", 2 * _SIZE, _draw_state(State.DROPPED)),
    ]
    if any(part.heat is not None for part in cells):
        entries.append(Entry("importance for the question", 48, _draw_heat))
    entries.append(Entry("tokens kept per step", 28, _draw_bars))
    if any(part.segment is not None for part in cells):
        entries.append(Entry("temporal segments", 34, _draw_segments))
    return entries


def legend_height(entries: Sequence[Entry], width: float) -> int:
    """Pixels that `draw_legend` needs."""
    return LINE_HEIGHT * (_place(Canvas(1, 1), entries, width)[-1][1] + 1)


def draw_legend(canvas: Canvas, x: float, y: float, entries: Sequence[Entry], width: float) -> None:
    """The entries from (x, y) on, within `width`."""
    for entry, (left, line) in zip(entries, _place(canvas, entries, width), strict=True):
        top = y + line * LINE_HEIGHT
        entry.draw(canvas, x + left, top)
        canvas.text(x + left + entry.width + 8, top + _SIZE / 2, entry.words, _TEXT)


def _place(canvas: Canvas, entries: Sequence[Entry], width: float) -> list[tuple[float, int]]:
    """Left edge and line of every entry."""
    places: list[tuple[float, int]] = []
    left, line = 0.0, 0
    for entry in entries:
        needed = entry.width + 8 + canvas.measure(entry.words, _TEXT)
        if left > 0 and left + needed > width:
            left, line = 0.0, line + 1
        places.append((left, line))
        left += needed + _SPACE
    return places


def _draw_state(state: State) -> Callable[[Canvas, float, float], None]:
    """Two cells in the look of `state`."""
    merged = state == State.MERGED
    token = np.array([[[2, 2 if merged else 3]]], dtype=np.int32)
    anchor = np.array([[[True, not merged]]])
    cells = Cells(np.full((1, 1, 2), state, dtype=np.uint8), token, anchor, None, None)
    photo: np.ndarray = np.full((_SIZE, 2 * _SIZE, 3), (120, 150, 120), dtype=np.uint8)
    photo[_SIZE // 2 :] = (156, 124, 88)
    sample = paint_cells(photo, cells, 0)
    return lambda canvas, x, y: canvas.paste(sample, x, y)


def _draw_heat(canvas: Canvas, x: float, y: float) -> None:
    canvas.paste(heat_colours(np.tile(np.linspace(0, 1, 48), (_SIZE, 1))).astype(np.uint8), x, y)


def _draw_bars(canvas: Canvas, x: float, y: float) -> None:
    for index, height in enumerate((6, 12, 9)):
        canvas.box(x + 9 * index, y + _SIZE - height, 8, height, fill=BAR)


def _draw_segments(canvas: Canvas, x: float, y: float) -> None:
    for index, shade in enumerate(SHADES):
        canvas.box(x + 17 * index, y + 2, 16, _SIZE - 4, fill=shade)
