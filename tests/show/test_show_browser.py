"""The page of `vllm-prune show` in a real browser: what is seen, clicked and read."""

from __future__ import annotations

import numpy as np
import pytest
from browser import CHROMIUM, NO_CHROMIUM, Browser
from show_traces import GRID, make_story

from vllm_prune.show.film import save_film
from vllm_prune.show.html import save_page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
PRUNES = ["default", {"method": "uniform", "keep_ratio": 0.1}]
QUESTION = "</script><script>document.title='hacked'</script> <b>&amp; \"why\"?"
VIEW, TIME, CLOCK, COUNTS = '[data-part="view"]', '[data-part="time"]', '[data-part="clock"]', '[data-part="counts"]'
RIGHT_ARROW, DOWN_ARROW, TAB, PAGE_DOWN = 39, 40, 9, 34
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


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


def told(page: Browser) -> str | None:
    """What a screen reader reads of the element that has the focus."""
    return page.run("document.activeElement.getAttribute('aria-label')")


def test_cells_are_reached_and_read_by_keys(page):
    page.run("document.querySelector('[data-part=\"views\"] button:last-child').focus()")
    page.press("Tab", TAB)
    assert told(page).startswith("Step 0, row 0, column 0: ")
    page.press("ArrowDown", DOWN_ARROW)
    page.press("ArrowRight", RIGHT_ARROW)
    assert told(page).startswith("Step 0, row 1, column 1: ")
    assert page.text('[data-part="cell"]') == told(page)
    assert page.text(CLOCK) == "frame 1 of 12, 0.0 s"
    chosen = page.picture(VIEW)
    page.press("PageDown", PAGE_DOWN)
    assert told(page).startswith("Step 1, row 1, column 1: ")
    assert page.text(CLOCK) == "frame 3 of 12, 1.0 s"
    for _ in range(GRID[2]):  # stops at the end of the row, and turns no frame there
        page.press("ArrowRight", RIGHT_ARROW)
    assert f"row 1, column {GRID[2] - 1}: " in told(page)
    assert page.text(CLOCK) == "frame 3 of 12, 1.0 s"
    page.press("Tab", TAB)
    assert page.run("document.activeElement.dataset.part") == "play"
    assert differ(chosen, page.picture(VIEW)) > 0


def test_the_focus_is_seen_around_every_control(page):
    """A group of buttons cuts off what is drawn beyond its edge."""
    controls = [choice("panels", 1), choice("panels", 2), choice("views", 2), '[data-part="play"]', ".cells [tabindex]"]
    for selector in controls:
        control = f"document.querySelector('{selector}')"
        page.run(f"{control}.blur()")
        before = page.picture(selector, margin=8).astype(int)
        page.run(f"{control}.focus({{focusVisible: true}})")
        changed = (np.abs(page.picture(selector, margin=8) - before).max(-1) > 60)[:, : before.shape[1]]
        rows, columns = changed.mean(1), changed.mean(0)
        edges = (rows[:16].max(), rows[-16:].max(), columns[:16].max(), columns[-16:].max())
        assert min(edges) > 0.5, (selector, edges)


def test_the_slider_is_read_as_frame_and_time(page):
    page.click(TIME)
    slider = "document.querySelector('[data-part=\"slider\"]')"
    assert page.run(f"{slider}.getAttribute('aria-valuetext')") == page.text(CLOCK) == "frame 7 of 12, 3.0 s"


@pytest.mark.parametrize("side", [40, 12])
def test_merged_cells_are_told_apart_without_colour(page, side):
    """By what is drawn on an empty picture: the same in cells of one group, in large cells another for each group."""
    drawn = page.run(
        f"""(() => {{
          const [T, H, W] = story.grid, panel = story.panels[0], found = [];
          for (let t = 0; t < T; t++) {{
            const g = new OffscreenCanvas(W * {side}, H * {side}).getContext("2d");
            drawGroups(g, panel, {{ base: t * H * W, W, H, w: {side}, h: {side} }});
            for (let i = 0; i < H * W; i++) {{
              const data = g.getImageData(i % W * {side}, Math.floor(i / W) * {side}, {side}, {side}).data;
              found.push([panel.state[t * H * W + i], panel.token[t * H * W + i], data.join()]);
            }}
          }}
          return found; }})()"""
    )
    groups: dict[int, set[str]] = {}
    for state, token, pixels in drawn:
        if state == 1:
            groups.setdefault(token, set()).add(pixels)
        else:
            assert set(pixels.split(",")) == {"0"}
    assert len(groups) > 4
    assert all(len(own) == 1 for own in groups.values())
    assert len(set.union(*groups.values())) == (len(groups) if side == 40 else 4)


def test_with_a_question_it_opens_on_what_the_question_decides(browser, tmp_path):
    for question, opened in ((QUESTION, "default"), (None, "stage1_only")):
        save_page(make_story(tmp_path, ["stage1_only", "default"], question=question), tmp_path / "page.html")
        browser.open((tmp_path / "page.html").as_uri())
        browser.wait("document.documentElement.dataset.ready === 'yes'")
        assert browser.text('[data-part="panels"] [aria-pressed=true]') == opened


def test_a_phone_gets_no_hints_about_keys_and_nothing_wider_than_itself(browser, url):
    browser.send("Emulation.setDeviceMetricsOverride", **PHONE)
    browser.send("Emulation.setTouchEmulationEnabled", enabled=True)
    try:
        browser.open(url)
        browser.wait("document.documentElement.dataset.ready === 'yes'")
        seen = browser.text(".viewer")
        assert "Tap a cell" in seen
        assert "Keys:" not in seen
        assert "Point at" not in seen
        assert browser.run("document.documentElement.scrollWidth") == PHONE["width"]
        browser.click(VIEW)
        assert f"row {GRID[1] // 2}, column {GRID[2] // 2}" in browser.text('[data-part="cell"]')
        top, below = browser.run(
            "['cell', 'counts'].map(p => document.querySelector(`[data-part=\"${p}\"]`).getBoundingClientRect().top)"
        )
        assert top < PHONE["height"]  # the click has put the picture's middle in the middle of the screen
        assert top < below
    finally:
        browser.send("Emulation.clearDeviceMetricsOverride")
        browser.send("Emulation.setTouchEmulationEnabled", enabled=False)
    browser.open(f"{url}#again")
    browser.wait("document.documentElement.dataset.ready === 'yes'")
    assert "Keys:" in browser.text(".viewer")


@pytest.mark.parametrize(("width", "height"), [(1240, 1000), (1920, 900), (900, 1000)])
def test_the_picture_and_the_cards_fill_the_width(browser, url, width, height):
    browser.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
    try:
        browser.open(url)
        browser.wait("document.documentElement.dataset.ready === 'yes'")
        stage, picture, aside = browser.run(
            "['.stage', '.picture', 'aside'].map(s => document.querySelector(s).getBoundingClientRect().toJSON())"
        )
        assert picture["left"] == stage["left"]
        assert aside["left"] - picture["right"] == pytest.approx(20, abs=1)
        assert aside["right"] == pytest.approx(stage["right"], abs=1)
        assert picture["height"] <= 0.8 * height + 1
        fills_height = picture["height"] == pytest.approx(0.8 * height, abs=2)
        assert fills_height or aside["width"] == pytest.approx(300, abs=2)
    finally:
        browser.send("Emulation.clearDeviceMetricsOverride")


def test_a_film_plays(browser, tmp_path):
    save_film(make_story(tmp_path, PRUNES, question=QUESTION), tmp_path / "film.mp4")
    (tmp_path / "film.html").write_text("<!doctype html><video muted autoplay src=film.mp4></video>")
    browser.open((tmp_path / "film.html").as_uri())
    browser.wait("document.querySelector('video').error || document.querySelector('video').currentTime > 0.2")
    assert browser.run("document.querySelector('video').error") is None
    assert browser.run("document.querySelector('video').videoWidth") > 400
