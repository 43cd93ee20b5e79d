"""One self-contained page: frames, cells and a viewer in one file, without anything to fetch."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vllm_prune.show.cells import Cells
from vllm_prune.show.paint import fit, fit_tile
from vllm_prune.show.story import Panel, Story

_LARGEST, _SMALLEST = 640, 224  # of the longer side of a frame
_JPEG_QUALITY = 82
_FOLDER = Path(__file__).parent
_VIEWER = ("paint.js", "grid.js", "viewer.js")


def save_page(story: Story, path: Path) -> None:
    """Writes the page."""
    title = html.escape(story.question or story.frames.name)
    page = with_viewer(_read("page.html")).replace("@TITLE@", title, 1)
    path.write_text(page.replace("@DATA@", _to_script(describe(story)), 1), encoding="utf-8")


def with_viewer(template: str) -> str:
    """`template` with the viewer's style at @STYLE@ and its code at @VIEWER@."""
    code = "\n".join(_read(name) for name in _VIEWER)
    return template.replace("@STYLE@", _read("viewer.css"), 1).replace("@VIEWER@", code, 1)


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8").rstrip()


def describe(story: Story) -> dict[str, Any]:
    """All that the page shows, ready for JSON; arrays are base64 of their bytes."""
    return {
        "name": story.frames.name,
        "question": story.question,
        "grid": list(story.grid),
        "framesPerStep": story.frames_per_step,
        "tokenPixels": story.token_pixels,
        "seconds": [round(float(second), 3) for second in story.frames.seconds],
        "frames": [_jpeg(image, story.grid) for image in story.frames.images],
        "panels": [_describe_panel(panel) for panel in story.panels],
        "opens": _opens(story),
    }


def _opens(story: Story) -> int:
    """The panel to show first: with a question, one that it decides in."""
    asked = (index for index, panel in enumerate(story.panels) if panel.config.query_aware)
    return next(asked, 0) if story.question is not None else 0


def _describe_panel(panel: Panel) -> dict[str, Any]:
    return {
        "label": panel.label,
        "config": panel.config.to_dict(),
        "answer": panel.answer,
        "counts": [[what, count] for what, count in panel.counts],
        "structure": panel.structure,
        **_describe_cells(panel.cells),
    }


def _describe_cells(cells: Cells) -> dict[str, Any]:
    heat = None if cells.heat is None else _encode(np.round(cells.heat * 65535).astype("<u2"))
    return {
        "state": _encode(cells.state),
        "token": _encode(cells.token.astype("<i4")),
        "anchor": _encode(cells.anchor.astype(np.uint8)),
        "heat": heat,
        "segment": None if cells.segment is None else cells.segment.tolist(),
    }


def _encode(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _jpeg(image: np.ndarray, grid: tuple[int, int, int]) -> str:
    """A frame as the model sees it: in the proportions of the grid."""
    side = min(_LARGEST, max(*image.shape[:2], _SMALLEST))
    small = fit(image, *fit_tile(side, side, grid[1], grid[2]))
    _, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _to_script(value: Any) -> str:
    r"""JSON that cannot end the script element it stands in.

    >>> _to_script("</script>")
    '"\\u003c/script>"'
    """
    return json.dumps(value).replace("<", "\\u003c")
