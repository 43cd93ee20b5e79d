"""Headless Chromium, driven through its DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NO_CHROMIUM = "no Chromium on the PATH: bash launch/browser.sh, or apt-get install chromium"
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--hide-scrollbars", "--mute-audio", "--disable-dev-shm-usage", "--window-size=1240,1000"),
)
_START_SECONDS = 60


class Browser:
    """One page; use it in a `with` statement."""

    def __init__(self, folder: Path) -> None:
        """`folder` gets the browser's profile."""
        self._profile = folder / "profile"
        self._ids = itertools.count(1)
        self._events: list[dict[str, Any]] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Browser:
        assert CHROMIUM is not None
        command = [CHROMIUM, *_FLAGS, "--remote-debugging-port=0", f"--user-data-dir={self._profile}", "about:blank"]
        # Without a proxy: the pages are on this machine.
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        port, path = self._address()
        socket = connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None)
        self._socket = self._stack.enter_context(socket)
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._call("Browser.close")
        self._stack.close()
        try:
            self._process.wait(timeout=20)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()

    def _address(self) -> tuple[str, str]:
        """Port and path of the protocol, which Chromium writes into its profile."""
        file, deadline = self._profile / "DevToolsActivePort", time.monotonic() + _START_SECONDS
        while not (file.is_file() and len(lines := file.read_text().splitlines()) == 2):
            assert self._process.poll() is None, "Chromium ended"
            assert time.monotonic() < deadline, "Chromium does not start"
            time.sleep(0.1)
        return lines[0], lines[1]

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message | ({"sessionId": session} if session else {})))
        while (answer := json.loads(self._socket.recv(timeout=120))).get("id") != number:
            self._events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the DevTools protocol to the page."""
        return self._call(method, self._session, **parameters)

    def open(self, url: str) -> None:
        """Goes to `url` and waits until it is loaded."""
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=url)
        self.wait("location.href !== 'about:blank' && document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 60) -> None:
        """Until the JavaScript expression is true."""
        deadline = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < deadline, f"not within {seconds} s: {condition}"
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        """What a reader sees of an element."""
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def point(self, selector: str) -> tuple[float, float]:
        """Moves the mouse to the middle of an element, and returns where that is."""
        place = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{place}.scrollIntoView({{block: 'center'}})")
        x, y = self.run(
            f"(() => {{ const b = {place}.getBoundingClientRect(); "
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        return x, y

    def click(self, selector: str) -> None:
        """A click in the middle of an element."""
        x, y = self.point(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, code: int) -> None:
        """A key, by name and number (39: right arrow)."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def choose_file(self, selector: str, path: Path) -> None:
        """Picks a file in an input element."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def picture(self, selector: str | None = None, margin: int = 0) -> np.ndarray:
        """[height, width, 3] uint8 of the whole page, or of one element with `margin` pixels around it."""
        options: dict[str, Any] = {"captureBeyondViewport": True}
        if selector is not None:
            box = self.run(
                f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect(); "
                f"return {{x: b.x + scrollX - {margin}, y: b.y + scrollY - {margin}, width: b.width + {2 * margin}, "
                f"height: b.height + {2 * margin}, scale: 1}}; }})()"
            )
            options["clip"] = box
        data = self.send("Page.captureScreenshot", format="png", **options)["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))

    def complaints(self) -> list[str]:
        """Errors of the page's scripts and of its console so far."""
        self.run("0")
        found = []
        for event in self._events:
            parameters = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(parameters["exceptionDetails"]["exception"].get("description", ""))
            elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
                found.append(parameters["entry"]["text"])
        return found

    def requested(self) -> list[str]:
        """Addresses that the page has asked for."""
        self.run("0")
        sent = [event["params"] for event in self._events if event.get("method") == "Network.requestWillBeSent"]
        return [parameters["request"]["url"] for parameters in sent]
