"""Sheet, film and page of traced videos."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from PIL import Image
from show_traces import CONFIGS, GRID, make_frames, make_panels, make_story

from vllm_prune.show.canvas import PAPER, Canvas
from vllm_prune.show.cells import State
from vllm_prune.show.film import frame_rate, save_film
from vllm_prune.show.html import save_page
from vllm_prune.show.paint import dim, paint_cells, paint_heat
from vllm_prune.show.sheet import SheetOptions, draw_sheet, parse_steps, save_sheet
from vllm_prune.show.timeline import draw_timeline

CELL = 28


def inside(image: np.ndarray, row: int, column: int) -> np.ndarray:
    """The pixels of a cell near its corner: within its outline and outside its dot."""
    return image[row * CELL + 3 : row * CELL + 7, column * CELL + 3 : column * CELL + 7]


def test_groups_are_numbered_where_there_is_room(tmp_path):
    cells = make_panels(tmp_path, ["stage1_only"])[0].cells
    numbers = {int(token): int(group) for token, group in zip(cells.token.flat, cells.group.flat, strict=True) if group}
    assert sorted(numbers.values()) == list(range(1, len(numbers) + 1))
    assert (cells.group > 0).tolist() == (cells.state == State.MERGED).tolist()
    for side, numbered in ((CELL, True), (20, False)):
        image = np.full((GRID[1] * side, GRID[2] * side, 3), 128, dtype=np.uint8)
        step, row, column = np.argwhere(cells.group > 0)[0]
        cell = paint_cells(image, cells, step)[row * side : (row + 1) * side, column * side : (column + 1) * side]
        lower_left = cell[2 * side // 3 : -2, 2 : side // 2].astype(int)
        assert (lower_left.std(axis=(0, 1)).max() > 20) == numbered


@pytest.mark.parametrize("end", ["\n", "\r\n", "\x1c", "\x85", "\u2028", "\u2029", "\x00"])
def test_an_answer_of_several_lines_is_drawn_in_one(end):
    lines, line = Canvas(300, 40), Canvas(300, 40)
    assert lines.text(4, 20, f"red{end}blue", 12) == line.text(4, 20, f"red{' ' * len(end)}blue", 12)
    assert (lines.array() == line.array()).all()
    assert lines.shorten(f"red{end}blue" * 40, 12, 80).endswith("...")


def test_the_time_line_of_a_video_with_more_steps_than_pixels(tmp_path):
    (panel,) = make_panels(tmp_path, ["stage1_only"], (400, 1, 2))
    canvas = Canvas(300, 60)
    draw_timeline(canvas, 4.3, 4, 290.7, panel, [0])
    assert (canvas.array() != Canvas(300, 60).array()).any(axis=(0, 2))[6:290].all()


@pytest.mark.parametrize("prune", CONFIGS, ids=str)
def test_kept_cells_are_clear_and_dropped_ones_grey(tmp_path, prune):
    cells = make_panels(tmp_path, [prune])[0].cells
    image = make_frames(GRID).images[0]
    seen = set()
    for step in range(GRID[0]):
        painted = paint_cells(image, cells, step)
        for row, column in np.ndindex(*GRID[1:]):
            before, after = inside(image, row, column), inside(painted, row, column)
            state = State(int(cells.state[step, row, column]))
            seen.add(state)
            if state == State.KEPT:
                np.testing.assert_array_equal(before, after)
            elif state == State.MERGED:
                assert (before != after).any()
                assert after.mean() > 100
            else:
                np.testing.assert_array_equal(after, dim(before).astype(np.uint8))
    assert len(seen) > 1


def test_cells_of_a_token_share_a_tint_and_others_do_not(tmp_path):
    cells = make_panels(tmp_path, ["stage1_only"])[0].cells
    grey = np.full((GRID[1] * CELL, GRID[2] * CELL, 3), 128, dtype=np.uint8)
    colours: dict[int, set] = {}
    for step, row, column in np.argwhere(cells.state == State.MERGED):
        pixel = tuple(inside(paint_cells(grey, cells, step), row, column)[0, 0])
        colours.setdefault(int(cells.token[step, row, column]), set()).add(pixel)
    assert all(len(own) == 1 for own in colours.values())
    assert len(set.union(*colours.values())) > 0.8 * len(colours)


def test_a_dot_is_where_a_merged_token_is_placed(tmp_path):
    cells = make_panels(tmp_path, ["stage1_only"])[0].cells
    black = np.zeros((GRID[1] * CELL, GRID[2] * CELL, 3), dtype=np.uint8)
    for step in range(GRID[0]):
        painted = paint_cells(black, cells, step)
        for row, column in np.argwhere(cells.state[step] == State.MERGED):
            centre = painted[row * CELL + CELL // 2, column * CELL + CELL // 2]
            assert (centre == 255).all() == cells.anchor[step, row, column]


def test_more_important_cells_are_brighter(tmp_path):
    cells = make_panels(tmp_path, ["stage2_only"])[0].cells
    grey = np.full((GRID[1] * CELL, GRID[2] * CELL, 3), 128, dtype=np.uint8)
    painted = paint_heat(grey, cells, 0)
    brightness = [inside(painted, row, column).mean() for row, column in np.ndindex(*GRID[1:])]
    order = np.argsort(cells.heat[0].ravel())
    assert brightness[order[-1]] > brightness[order[len(order) // 2]] > brightness[order[0]]


def test_a_sheet_has_a_row_for_every_configuration(tmp_path):
    path = tmp_path / "sheet.png"
    one, three = (make_story(tmp_path / str(n), CONFIGS[:n]) for n in (1, 3))
    save_sheet(three, path)
    with Image.open(path) as image:
        assert image.width == 1400
        assert image.height == draw_sheet(three, SheetOptions()).height > draw_sheet(one, SheetOptions()).height
        assert image.convert("RGB").getpixel((2, 2)) == PAPER


@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 3, 2), (12, 1, 9), (2, 9, 1)])
def test_any_grid_gives_a_sheet_a_film_and_a_page(tmp_path, grid):
    story = make_story(tmp_path, ["default", {"method": "uniform"}], grid)
    save_sheet(story, tmp_path / "a.png", SheetOptions(width=600))
    save_film(story, tmp_path / "a.mp4")
    save_page(story, tmp_path / "a.html")
    for name in ("a.png", "a.mp4", "a.html"):
        assert (tmp_path / name).stat().st_size > 500


def test_a_long_question_is_cut_to_the_width():
    canvas = Canvas(400, 40)
    text = canvas.shorten("why " * 100, 20, 300)
    assert text.endswith("...")
    assert 200 < canvas.measure(text, 20) <= 300
    assert canvas.shorten("why", 20, 300) == "why"


@pytest.mark.parametrize("text", ["6", "a", "1,,2", "-1", ""])
def test_steps_out_of_range_are_named(text):
    assert parse_steps("0, 5", 6) == (0, 5)
    with pytest.raises(ValueError, match=r"steps=.*from 0 to 5"):
        parse_steps(text, 6)


def test_a_film_has_the_frames_the_model_saw(tmp_path):
    path = tmp_path / "film.mp4"
    story = make_story(tmp_path, ["stage1_only", "default"])
    save_film(story, path)
    film = cv2.VideoCapture(str(path))
    assert film.get(cv2.CAP_PROP_FPS) == frame_rate(story) == 2
    pictures = []
    while (read := film.read())[0]:
        pictures.append(read[1])
    assert len(pictures) == 2 * GRID[0]
    assert all(size % 2 == 0 for size in pictures[0].shape[:2])
    assert np.abs(pictures[0].astype(int) - pictures[-1]).mean() > 5


class Page(HTMLParser):
    """What a page refers to, and the text of its data script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.references += [value for name, value in attrs if name in ("src", "href", "data", "action")]
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.lasttag == "script" and self.scripts:
            self.scripts[-1] += data


def test_a_page_is_one_file_that_fetches_nothing(tmp_path):
    path = tmp_path / "page.html"
    story = make_story(tmp_path, ["default", "stage1_only"])
    save_page(story, path)
    text = path.read_text()
    page = Page(text)
    assert page.references == []
    assert not re.findall(r"https?:|url\(|@import|\bimport\(|fetch\(|@[A-Z]+@", text)
    data = json.loads(page.scripts[0])
    assert len(data["frames"]) == 2 * GRID[0]
    image = cv2.imdecode(
        np.frombuffer(base64.b64decode(data["frames"][0].partition(",")[2]), np.uint8), cv2.IMREAD_COLOR
    )
    assert image.shape[0] / image.shape[1] == pytest.approx(GRID[1] / GRID[2], abs=0.02)
    for panel, described in zip(story.panels, data["panels"], strict=True):
        state = np.frombuffer(base64.b64decode(described["state"]), np.uint8)
        np.testing.assert_array_equal(state.reshape(GRID), panel.cells.state)
        token = np.frombuffer(base64.b64decode(described["token"]), "<i4")
        np.testing.assert_array_equal(token.reshape(GRID), panel.cells.token)
