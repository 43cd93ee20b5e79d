"""The overlay as a film: all configurations beside each other, at the pace of the sampled frames."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np

from vllm_prune.show.canvas import FAINT, Canvas
from vllm_prune.show.errors import ShowError
from vllm_prune.show.paint import fit, fit_tile, paint_cells, paint_heat
from vllm_prune.show.story import Panel, Story
from vllm_prune.show.timeline import HEIGHT, draw_timeline

_TILE_PIXELS, _MARGIN, _TITLE, _HEADER = 420, 16, 46, 40
_SLOWEST, _FASTEST = 1.0, 30.0
_NORMAL, _SMALL = 15, 12
_CODEC = "vp09"
"""VP9: browsers play it in mp4, and OpenCV's wheels can write it, unlike H.264."""


def save_film(story: Story, path: Path) -> None:
    """Writes an mp4 with one frame for each frame that the model saw."""
    first = draw_frame(story, 0)
    codec = cv2.VideoWriter_fourcc(*_CODEC)  # type: ignore[attr-defined]
    writer = cv2.VideoWriter(str(path), codec, frame_rate(story), (first.shape[1], first.shape[0]))
    if not writer.isOpened():
        raise ShowError(f"output={str(path)!r}: OpenCV cannot write mp4 there; write .html or .png instead")
    for index in range(len(story.frames.images)):
        writer.write(cv2.cvtColor(draw_frame(story, index), cv2.COLOR_RGB2BGR))
    writer.release()


def frame_rate(story: Story) -> float:
    """Frames a second such that the film lasts as long as the video, within limits."""
    seconds = story.frames.seconds
    step = float(np.median(np.diff(seconds))) if len(seconds) > 1 else 1.0
    return min(max(1 / step if step > 0 else _SLOWEST, _SLOWEST), _FASTEST)


def draw_frame(story: Story, index: int) -> np.ndarray:
    """Frame number `index` under every configuration."""
    _, rows, columns = story.grid
    tile = fit_tile(_TILE_PIXELS, _TILE_PIXELS, rows, columns)
    across = min(len(story.panels), 3)
    down = math.ceil(len(story.panels) / across)
    heat = any(panel.cells.heat is not None for panel in story.panels)
    cell = _TITLE + tile[1] * (2 if heat else 1) + HEIGHT + _MARGIN
    width = across * (_TILE_PIXELS + _MARGIN) + _MARGIN
    canvas = Canvas(_even(width), _even(_HEADER + down * cell))
    title = story.question or story.frames.name
    canvas.text(_MARGIN, _HEADER / 2, canvas.shorten(title, _NORMAL, width - 120, bold=True), _NORMAL, bold=True)
    second = f"{float(story.frames.seconds[min(index, len(story.frames.seconds) - 1)]):.1f} s"
    canvas.text(width - _MARGIN, _HEADER / 2, second, _NORMAL, colour=FAINT, anchor="rm")
    image = fit(story.frames.images[index], *tile)
    for number, panel in enumerate(story.panels):
        x = _MARGIN + (number % across) * (_TILE_PIXELS + _MARGIN)
        _draw_panel(canvas, x, _HEADER + (number // across) * cell, panel, image, index // story.frames_per_step)
    return canvas.array()


def _draw_panel(canvas: Canvas, x: int, y: int, panel: Panel, image: np.ndarray, step: int) -> None:
    answer = f": {panel.answer}" if panel.answer is not None else ""
    name = canvas.shorten(panel.label + answer, _NORMAL, _TILE_PIXELS, bold=True)
    canvas.text(x, y + 10, name, _NORMAL, bold=True)
    canvas.text(x, y + 31, canvas.shorten(panel.summary, _SMALL, _TILE_PIXELS), _SMALL, colour=FAINT)
    y += _TITLE
    canvas.paste(paint_cells(image, panel.cells, step), x, y)
    y += image.shape[0]
    if panel.cells.heat is not None:
        canvas.paste(paint_heat(image, panel.cells, step), x, y)
        y += image.shape[0]
    draw_timeline(canvas, x, y, _TILE_PIXELS, panel, (step,))


def _even(pixels: int) -> int:
    """Video codecs want even sizes."""
    return pixels + pixels % 2
