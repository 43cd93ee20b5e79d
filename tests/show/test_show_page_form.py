"""The form of `/prune` as a browser shows it; `tests/serving/test_serving_page.py` asks a server by it."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import CHROMIUM, NO_CHROMIUM, Browser

from vllm_prune.page.document import page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


def test_a_phone_is_told_to_tap_and_has_room_for_the_form(tmp_path: Path) -> None:
    file = tmp_path / "prune.html"
    file.write_text(page())
    with Browser(tmp_path) as browser:
        browser.open(file.as_uri())
        assert browser.text("#hint").split() == ["Drop", "a", "video", "here,", "or", "click", "to", "pick", "one"]
        browser.send("Emulation.setDeviceMetricsOverride", **PHONE)
        browser.send("Emulation.setTouchEmulationEnabled", enabled=True)
        browser.open(file.as_uri())
        assert browser.text("#hint").split() == ["Tap", "to", "pick", "a", "video"]
        assert browser.run("document.documentElement.scrollWidth") == PHONE["width"]
