"""The page of `vllm-prune show` in a real browser: what is seen, clicked and read."""

from __future__ import annotations

import numpy as np
import pytest
from browser import CHROMIUM, NO_CHROMIUM, Browser
from show_traces import GRID, make_story

from vllm_prune.show.html import save_page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
PRUNES = ["default", {"method": "uniform", "keep_ratio": 0.1}]
QUESTION = "</script><script>document.title='hacked'</script> <b>&amp; \"why\"?"
VIEW, TIME, CLOCK, COUNTS = '[data-part="view"]', '[data-part="time"]', '[data-part="clock"]', '[data-part="counts"]'
RIGHT_ARROW = 39


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    save_page(make_story(folder, PRUNES, question=QUESTION), folder / "page.html")
    return (folder / "page.html").as_uri()


@pytest.fixture
def page(browser, url):
    browser.open(url)
    browser.wait("document.documentElement.dataset.ready === 'yes'")
    return browser


def differ(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - other).mean())


def choice(group: str, number: int) -> str:
    return f'[data-part="{group}"] button:nth-child({number})'


def test_the_text_is_the_storys_and_stays_text(page):
    assert page.run("document.title") == f"{QUESTION} - vllm-prune"
    assert page.text("h1") == f'"{QUESTION}"'
    assert page.text('[data-part="answer"]') == "yes"
    assert page.complaints() == []
    assert all(address.startswith(("file:", "data:", "about:")) for address in page.requested())


def test_the_slider_moves_the_frame(page):
    assert page.text(CLOCK) == "frame 1 of 12, 0.0 s"
    before = page.picture(VIEW)
    slider = """document.querySelector('[data-part="slider"]')"""
    page.run(f"{slider}.value = 5; {slider}.dispatchEvent(new Event('input'))")
    assert page.text(CLOCK) == "frame 6 of 12, 2.5 s"
    assert differ(before, page.picture(VIEW)) > 5
    page.run(f"{slider}.blur()")
    page.press("ArrowRight", RIGHT_ARROW)
    assert page.text(CLOCK) == "frame 7 of 12, 3.0 s"
    page.click(TIME)  # its middle is the first frame of step 3
    assert page.text(CLOCK) == "frame 7 of 12, 3.0 s"


def test_configurations_are_switched(page):
    first, counts, times = page.picture(VIEW), page.text(COUNTS), page.picture(TIME)
    page.click(choice("panels", 2))
    second = page.picture(VIEW)
    assert differ(first, second) > 5
    assert differ(times, page.picture(TIME)) > 1
    assert page.text(choice("panels", 2)) == "uniform, 10%"
    assert "21 (10%)" in page.text(COUNTS) != counts
    page.press("1", ord("1"))
    assert page.text(COUNTS) == counts
    assert differ(first, page.picture(VIEW)) == 0


def test_dropped_cells_are_darker_than_the_video(page):
    page.click(choice("panels", 2))  # keeps a tenth
    tokens = page.picture(VIEW)
    page.click(choice("views", 3))
    assert tokens.mean() < 0.6 * page.picture(VIEW).mean()


def test_importance_is_drawn_as_heat_where_a_question_chose(page):
    tokens = page.picture(VIEW)
    page.click(choice("views", 2))
    heat = page.picture(VIEW).astype(int)
    assert differ(tokens, heat) > 10
    # The scale runs from near black over red to yellow: hardly any of it is blue, which the noise is.
    assert heat[..., 0].mean() > 1.2 * heat[..., 2].mean()
    page.click(choice("panels", 2))
    assert page.run(f"document.querySelector('{choice('views', 2)}').disabled")
    assert page.run(f"document.querySelector('{choice('views', 1)}').getAttribute('aria-pressed')") == "true"


def test_segments_are_on_the_time_line_of_stage_1_only(page):
    strip = page.picture(TIME)[46:60].astype(int)
    gold = (strip[..., 0] > 200) & (strip[..., 2] < 190)
    assert gold.mean() > 0.6
    page.click(choice("panels", 2))
    strip = page.picture(TIME)[46:60].astype(int)
    assert ((strip[..., 0] > 200) & (strip[..., 2] < 190)).mean() < 0.01


def test_a_cell_tells_what_became_of_it(page):
    page.point(VIEW)
    told = page.text('[data-part="cell"]')
    assert f"row {GRID[1] // 2}, column {GRID[2] // 2}" in told
    assert "Importance:" in told


def test_the_address_chooses_a_state(browser, url):
    browser.open(f"{url}#panel=1&frame=3&view=video")
    browser.wait("document.documentElement.dataset.ready === 'yes'")
    assert browser.text(CLOCK) == "frame 4 of 12, 1.5 s"
    pressed = browser.run("[...document.querySelectorAll('[aria-pressed=true]')].map(b => b.innerText)")
    assert pressed == ["uniform, 10%", "video"]
