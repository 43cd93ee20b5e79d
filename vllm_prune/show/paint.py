"""Colours, and one frame with its cells painted."""

from __future__ import annotations

import colorsys
from functools import lru_cache

import cv2
import numpy as np

from vllm_prune.show.cells import Cells, State

TINT = 0.26
"""How much of a merged cell is its cluster's colour."""
_DIM_GAIN, _DIM_LIFT = 0.3, 22
_FAINTEST = 0.45
_NUMBER_ROOM = 26  # pixels of a cell from which on a number can be read in it
_HEAT_STOPS = np.array([[8, 8, 24], [70, 16, 96], [186, 40, 84], [246, 128, 40], [252, 244, 164]], dtype=np.float32)
_HEAT_GAMMA, _HOTTEST = 0.5, 0.99  # attention is spiky: without these all but a few cells would look cold


def cluster_colour(token: int) -> tuple[int, int, int]:
    """RGB of a merged token; neighbouring numbers get colours far apart."""
    hue = (token * 0.61803398875) % 1
    red, green, blue = colorsys.hls_to_rgb(hue, 0.55 + 0.1 * (token % 3 - 1), 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


@lru_cache(maxsize=8)
def _palette(size: int) -> np.ndarray:
    return np.array([cluster_colour(token) for token in range(size)], dtype=np.float32).reshape(size, 3)


def fit(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """`image` in another size, without ringing when it shrinks."""
    shrinks = image.shape[1] > width
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def fit_tile(width: int, height: int, rows: int, columns: int) -> tuple[int, int]:
    """The largest tile of the grid's proportions within a box, at least one pixel each way.

    >>> fit_tile(400, 300, 10, 20), fit_tile(400, 300, 9, 1)
    ((400, 200), (33, 300))
    """
    scale = min(width / columns, height / rows)
    return max(1, round(columns * scale)), max(1, round(rows * scale))


def dim(image: np.ndarray) -> np.ndarray:
    """Grey and dark: what is dropped. float32."""
    grey = image.astype(np.float32).mean(axis=2, keepdims=True)
    return np.repeat(grey * _DIM_GAIN + _DIM_LIFT, 3, axis=2)


def paint_cells(image: np.ndarray, cells: Cells, step: int) -> np.ndarray:
    """`image` [height, width, 3] with dropped cells dimmed and merged ones tinted and outlined by cluster."""
    token, state = (_enlarge(field[step], image) for field in (cells.token, cells.state))
    merged = state == State.MERGED
    alive = merged | (state == State.KEPT)
    palette = _palette(int(cells.token.max()) + 1 if cells.token.size else 1)
    colours = palette[np.maximum(token, 0)] if len(palette) else np.zeros((*token.shape, 3), dtype=np.float32)
    painted: np.ndarray = image.astype(np.float32)
    painted = np.where(merged[..., None], painted * (1 - TINT) + colours * TINT, painted)
    painted = np.where(alive[..., None], painted, dim(image))
    # One outline around each merged token, one around neighbours that are kept alone, fainter lines between these.
    edge = _edges(np.where(merged, token + 1, np.where(alive, 0, -1)))
    strength = _outline_strength(image, cells)
    painted = np.where((edge & merged)[..., None], painted * (1 - strength) + colours * strength, painted)
    kept = state == State.KEPT
    painted = np.where((edge & kept)[..., None], 255.0, painted)
    between = _edges(token) & kept & ~edge
    faint = strength - _FAINTEST
    painted = np.where(between[..., None], painted * (1 - faint) + 255.0 * faint, painted)
    return _number_groups(_dot_anchors(painted.astype(np.uint8), cells, step), cells, step)


def paint_heat(image: np.ndarray, cells: Cells, step: int) -> np.ndarray:
    """`image` in grey under the importance of its cells."""
    assert cells.heat is not None
    hottest = max(float(np.quantile(cells.heat, _HOTTEST)), np.finfo(np.float32).tiny)
    heat = np.minimum(_enlarge(cells.heat[step], image) / hottest, 1) ** _HEAT_GAMMA
    grey = image.astype(np.float32).mean(axis=2, keepdims=True)
    colour = heat_colours(heat)
    return np.clip(colour * (0.55 + 0.45 * grey / 255), 0, 255).astype(np.uint8)


def heat_colours(heat: np.ndarray) -> np.ndarray:
    """[..., 3] RGB float32 of values in 0..1."""
    at = np.linspace(0, 1, len(_HEAT_STOPS))
    return np.stack([np.interp(heat, at, _HEAT_STOPS[:, channel]) for channel in range(3)], axis=-1)


def _enlarge(field: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The cell of every pixel: cells share a frame evenly, since the model resizes it to whole cells."""
    height, width = image.shape[:2]
    rows = np.arange(height) * field.shape[0] // height
    columns = np.arange(width) * field.shape[1] // width
    return field[rows[:, None], columns]


def _edges(token: np.ndarray) -> np.ndarray:
    """Pixels at the rim of a token's cells: a neighbour belongs to another token, or to nothing."""
    padded = np.pad(token, 1, constant_values=-2)
    inner = padded[1:-1, 1:-1]
    around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return np.logical_or.reduce([inner != neighbour for neighbour in around])


def _outline_strength(image: np.ndarray, cells: Cells) -> float:
    """Outlines of small cells are fainter, or nothing would be seen between them."""
    side = image.shape[1] / cells.grid[2]
    return float(np.clip(side / 30, _FAINTEST, 1.0))


def _dot_anchors(image: np.ndarray, cells: Cells, step: int) -> np.ndarray:
    """A white dot with a dark rim in merged cells that give their token its position."""
    image = np.ascontiguousarray(image)
    _, rows, columns = cells.grid
    height, width = image.shape[:2]
    side = min(height / rows, width / columns)
    radius = max(1.0, side * 0.12)
    rim = 1.0 if side > 24 else 0.6
    scale = 16  # of the fractional coordinates
    for row, column in np.argwhere(cells.anchor[step] & (cells.state[step] == State.MERGED)):
        centre = (round((column + 0.5) * width / columns * scale), round((row + 0.5) * height / rows * scale))
        for size, colour in ((radius + rim, (30, 30, 30)), (radius, (255, 255, 255))):
            cv2.circle(image, centre, round(size * scale), colour, -1, cv2.LINE_AA, shift=4)
    return image


def _number_groups(image: np.ndarray, cells: Cells, step: int) -> np.ndarray:
    """The number of its group in the lower left corner of every merged cell that has room: groups without colour."""
    _, rows, columns = cells.grid
    height, width = image.shape[:2]
    side = min(height / rows, width / columns)
    if side < _NUMBER_ROOM:
        return image
    scale = min(0.6, side / 80)
    for row, column in np.argwhere(cells.group[step] > 0):
        number, corner = str(cells.group[step, row, column]), (row + 1) * height / rows - 4
        place = (round(column * width / columns + 3), round(corner))
        for thickness, colour in ((3, (0, 0, 0)), (1, (255, 255, 255))):
            cv2.putText(image, number, place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness, cv2.LINE_AA)
    return image
