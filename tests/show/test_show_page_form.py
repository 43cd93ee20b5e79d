"""The form of `/prune` as a browser shows it; `tests/serving/test_serving_page.py` asks a server by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from browser import CHROMIUM, NO_CHROMIUM, Browser
from PIL import Image

from vllm_prune.embedded import clips
from vllm_prune.page.document import page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


def test_a_phone_is_told_to_tap_and_has_room_for_the_form(tmp_path: Path) -> None:
    file = tmp_path / "prune.html"
    file.write_text(page())
    with Browser(tmp_path) as browser:
        browser.open(file.as_uri())
        assert " ".join(browser.text("#hint").split()) == "Drop a video or a picture here, or click to pick one"
        browser.send("Emulation.setDeviceMetricsOverride", **PHONE)
        browser.send("Emulation.setTouchEmulationEnabled", enabled=True)
        browser.open(file.as_uri())
        assert " ".join(browser.text("#hint").split()) == "Tap to pick a video or a picture"
        assert browser.run("document.documentElement.scrollWidth") == PHONE["width"]


SERVER = {
    "prunes": True,
    "config": {},
    "keeps_everything": True,
    "keeps_images": True,
    "override": "any",
    "traces": True,
    "presets": {"default": {}, "aggressive": {}},
}


def choose(browser: Browser, path: Path, shown: str) -> None:
    browser.choose_file("#file", path)
    browser.wait(f"!document.querySelector('{shown}').hidden && page.url !== null")


def test_a_picture_has_choices_of_its_own_and_is_sent_as_an_image(tmp_path: Path) -> None:
    """No server is asked: the page is told what one would say."""
    file, picture = tmp_path / "prune.html", tmp_path / "picture.png"
    file.write_text(page())
    Image.new("RGB", (168, 112), (200, 30, 30)).save(picture)
    with Browser(tmp_path) as browser:
        browser.open(file.as_uri())
        browser.run(f"page.server = {json.dumps(SERVER)}; describeServer()")
        choose(browser, picture, "#picture")
        options = browser.run("[...document.querySelectorAll('#preset option')].map(option => option.value)")
        assert options == ["", "dpp, 50%", "dpp, 25%", "the question, 25%", "custom"]
        assert browser.run("prunings().asked") == {"image": {"method": "dpp", "keep_ratio": 0.5}}
        assert browser.run("requestOf(prunings().asked, 'What?').messages[0].content[0].type") == "image_url"
        assert browser.run("document.querySelector('#preview').hidden")
        choose(browser, clips()[0].path, "#preview")
        options = browser.run("[...document.querySelectorAll('#preset option')].map(option => option.value)")
        assert options == ["", "default", "aggressive", "custom"]
        assert browser.run("requestOf(prunings().asked, 'What?').messages[0].content[0].type") == "video_url"
        assert browser.run("document.querySelector('#picture').hidden")
