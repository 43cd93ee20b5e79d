"""The contact sheet: a row of frames for each configuration, with time line, counts and answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vllm_prune.show.canvas import FAINT, INK, PAPER, RULE, Canvas
from vllm_prune.show.legend import draw_legend, legend_height, list_entries
from vllm_prune.show.paint import fit, fit_tile, paint_cells, paint_heat
from vllm_prune.show.story import Panel, Story
from vllm_prune.show.timeline import BAR, BAR_OFF, HEIGHT, SHADES, draw_timeline

_MARGIN, _GAP = 24, 6
_HEADER, _TITLE, _BETWEEN = 64, 30, 20
_LARGE, _NORMAL, _SMALL = 20, 15, 12
_LARGEST = 448  # side of a frame
_SAMPLING = 3  # the palette is made from every third pixel each way
_PHOTO_COLOURS = 244  # a palette makes a sheet of photographs a third as large
_FLAT_COLOURS = (PAPER, INK, FAINT, RULE, BAR, BAR_OFF, *SHADES)


@dataclass(frozen=True)
class SheetOptions:
    """How the sheet is laid out."""

    width: int = 1400
    """Pixels."""
    columns: int = 8
    """Frames in a row at the most."""
    steps: tuple[int, ...] | None = None
    """Which steps of the grid; None: evenly spread."""


def save_sheet(story: Story, path: Path, options: SheetOptions | None = None) -> None:
    """Writes the sheet as PNG."""
    image = draw_sheet(story, options or SheetOptions()).image()
    _reduce_colours(image).save(path, optimize=True)


def _reduce_colours(image: Image.Image) -> Image.Image:
    """256 colours, among them exactly those of text and bars."""
    sample = image.resize((-(-image.width // _SAMPLING), -(-image.height // _SAMPLING)), Image.Resampling.NEAREST)
    photo = sample.quantize(_PHOTO_COLOURS, kmeans=1).getpalette()
    palette = Image.new("P", (1, 1))
    palette.putpalette([*(photo or [])[: 3 * _PHOTO_COLOURS], *(part for colour in _FLAT_COLOURS for part in colour)])
    return image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def draw_sheet(story: Story, options: SheetOptions) -> Canvas:
    """The whole sheet."""
    layout = _Layout(story, options)
    canvas = Canvas(options.width, layout.height)
    _draw_header(canvas, story)
    y = _HEADER + _MARGIN
    draw_legend(canvas, _MARGIN, y, layout.legend, layout.inner)
    y += layout.legend_height
    y = _draw_original(canvas, y, story, layout)
    for panel in story.panels:
        y = _draw_panel(canvas, y + _BETWEEN, story, panel, layout)
    return canvas


class _Layout:
    """Which steps are shown, and how large."""

    def __init__(self, story: Story, options: SheetOptions) -> None:
        steps, rows, columns = story.grid
        self.steps = options.steps or spread(steps, options.columns)
        self.inner = options.width - 2 * _MARGIN
        count = len(self.steps)
        available = min((self.inner - _GAP * (count - 1)) // count, _LARGEST)
        self.tile_width, self.tile_height = fit_tile(available, _LARGEST, rows, columns)
        heights = [self._panel_height(panel) for panel in story.panels]
        self.legend = list_entries(story)
        self.legend_height = legend_height(self.legend, self.inner) + 4
        original = _SMALL + 10 + self.tile_height
        self.height = _HEADER + self.legend_height + 2 * _MARGIN + original + sum(heights) + _BETWEEN * len(heights)

    def _panel_height(self, panel: Panel) -> int:
        rows = 1 if panel.cells.heat is None else 2
        return _TITLE + rows * (self.tile_height + _GAP) + HEIGHT

    def left(self, index: int) -> int:
        """Of the tile number `index` of a row."""
        return _MARGIN + index * (self.tile_width + _GAP)

    @property
    def row_width(self) -> int:
        """Of a row of tiles."""
        return len(self.steps) * (self.tile_width + _GAP) - _GAP


def spread(steps: int, count: int) -> tuple[int, ...]:
    """Up to `count` of `steps`, the middles of equal stretches of time.

    >>> spread(16, 4), spread(3, 8)
    ((2, 6, 10, 14), (0, 1, 2))
    """
    count = min(steps, count)
    return tuple(int((index + 0.5) * steps / count) for index in range(count))


def _draw_header(canvas: Canvas, story: Story) -> None:
    (t, h, w), side = story.grid, story.token_pixels
    title = f'"{story.question}"' if story.question else f"What is kept of {story.frames.name}"
    room = canvas.width - 2 * _MARGIN
    canvas.text(_MARGIN, _MARGIN + 10, canvas.shorten(title, _LARGE, room, bold=True), _LARGE, bold=True)
    facts = (
        f"{story.frames.name}: {len(story.frames.images)} frames sampled by vLLM, a grid of {t} x {h} x {w} = "
        f"{t * h * w:,} tokens; each covers {story.frames_per_step} frames x {side} x {side} pixels"
    )
    if story.frames.is_picture:
        facts = f"{story.frames.name}: a grid of {h} x {w} = {h * w:,} tokens; each covers {side} x {side} pixels"
    canvas.text(_MARGIN, _MARGIN + 38, canvas.shorten(facts, _NORMAL, room), _NORMAL, colour=FAINT)


def _draw_original(canvas: Canvas, y: int, story: Story, layout: _Layout) -> int:
    for index, step in enumerate(layout.steps):
        label = "" if story.frames.is_picture else f"{story.second_of(step):.1f} s"
        canvas.text(layout.left(index) + 1, y + 6, label, _SMALL, colour=FAINT)
    _draw_row(canvas, y + _SMALL + 4, story, layout, lambda image, step: image)
    return y + _SMALL + 10 + layout.tile_height


def _draw_row(
    canvas: Canvas, y: int, story: Story, layout: _Layout, paint: Callable[[np.ndarray, int], np.ndarray]
) -> None:
    for index, step in enumerate(layout.steps):
        image = fit(story.image_of(step), layout.tile_width, layout.tile_height)
        canvas.paste(paint(image, step), layout.left(index), y)


def _draw_panel(canvas: Canvas, y: int, story: Story, panel: Panel, layout: _Layout) -> int:
    canvas.box(_MARGIN, y - _BETWEEN // 2, layout.inner, 1, fill=RULE)
    _draw_title(canvas, y, panel)
    y += _TITLE
    _draw_row(canvas, y, story, layout, lambda image, step: paint_cells(image, panel.cells, step))
    y += layout.tile_height + _GAP
    if panel.cells.heat is not None:
        _draw_row(canvas, y, story, layout, lambda image, step: paint_heat(image, panel.cells, step))
        y += layout.tile_height + _GAP
    draw_timeline(canvas, _MARGIN, y, layout.row_width, panel, layout.steps)
    return y + HEIGHT


def _draw_title(canvas: Canvas, y: int, panel: Panel) -> None:
    middle, right = y + _TITLE / 2 - 3, canvas.width - _MARGIN
    x = canvas.text(_MARGIN, middle, panel.label, _NORMAL + 1, bold=True)
    x = canvas.text(x + 14, middle, panel.summary, _NORMAL, colour=INK)
    if panel.answer is None:
        return
    room = right - x - 30
    answer = canvas.shorten(f"answer: {panel.answer}", _NORMAL, room, bold=True)
    canvas.text(right, middle, answer, _NORMAL, bold=True, anchor="rm")


def parse_steps(text: str | None, steps: int) -> tuple[int, ...] | None:
    """The steps that a comma-separated list names."""
    if text is None:
        return None
    from vllm_prune.show.errors import ShowError

    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) < steps for part in parts):
        raise ShowError(f"steps={text!r}: must be numbers from 0 to {steps - 1} with commas between them")
    return tuple(int(part) for part in parts)
