"""`vllm-prune serve` in a process of its own, asked by the real client over HTTP."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import openai
from serving_engine import BLOCK_SIZE, ENVIRONMENT, MAX_MODEL_LEN, NUM_BLOCKS

START_TIMEOUT_S = 300
PAGE_KEY = "a-key"
"""That the server with the page asks for."""
OPTIONS = (
    *("--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager", "--gpu-memory-utilization", "0.1"),
    *("--max-model-len", str(MAX_MODEL_LEN), "--block-size", str(BLOCK_SIZE), "--max-num-seqs", "16"),
    *("--limit-mm-per-prompt", '{"video": 2, "image": 2}'),
)
FEW_BLOCKS = ("--num-gpu-blocks-override", str(NUM_BLOCKS))
"""For servers that run beside others."""


def serve_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "vllm_prune.cli.main", "serve", *arguments]


def environment() -> dict[str, str]:
    # The API server and its engine in two processes, as users have them.
    return {**os.environ, **ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_LOGGING_LEVEL": "INFO"}


class Server:
    """A running server; use it in a `with` statement."""

    model: str
    """Its name, as requests have to give it."""

    def __init__(
        self,
        model: str,
        folder: Path,
        *,
        prune: str,
        override: str = "tighten",
        options: tuple[str, ...] = OPTIONS,
        key: str = "",
        **variables: str,
    ) -> None:
        """`key`: that requests have to give; `variables`: of its environment."""
        self.port = free_port()
        self.root = f"http://127.0.0.1:{self.port}"
        self._log = folder / "server.log"
        settings = ("--prune", prune, "--prune-override", override, "--port", str(self.port))
        self._command = serve_command(model, *settings, *options, *(("--api-key", key) if key else ()))
        self._environment = environment() | variables
        # No retries: a connection that the server closed after a failure must be seen.
        self.client = openai.OpenAI(base_url=f"{self.root}/v1", api_key=key or "none", max_retries=0, timeout=120)

    def __enter__(self) -> Server:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.healthy():
            assert self._process.poll() is None, self.log()[-3000:]
            assert time.monotonic() < deadline, self.log()[-3000:]
            time.sleep(0.5)
        self.model = self.client.models.list().data[0].id

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=30)
        finally:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    @property
    def pid(self) -> int:
        """Of the API server (`vllm-prune serve` becomes vLLM's), and of the session of all its children."""
        return self._process.pid

    def log(self) -> str:
        return self._log.read_text()

    def healthy(self) -> bool:
        try:
            return httpx.get(f"{self.root}/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def ask(self, *content: dict[str, Any], prune: Any = None, max_tokens: int = 3, **others: Any) -> Any:
        """A chat completion of one user turn."""
        if prune is not None:
            others["extra_body"] = {"mm_processor_kwargs": {"prune": prune}, **others.get("extra_body", {})}
        return self.client.chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": list(content)}],
            max_completion_tokens=max_tokens,
            temperature=0.0,
            **others,
        )

    def events(self, *content: dict[str, Any], prune: Any = None, **others: Any) -> list[str]:
        """The data of every event of a streamed answer, as sent."""
        body = {"model": self.model, "messages": [{"role": "user", "content": list(content)}], "stream": True}
        body |= {"max_completion_tokens": 3, "temperature": 0.0, **others}
        if prune is not None:
            body["mm_processor_kwargs"] = {"prune": prune}
        with httpx.stream("POST", f"{self.root}/v1/chat/completions", json=body, timeout=120) as response:
            return [line.removeprefix("data: ") for line in response.iter_lines() if line]

    def metric(self, name: str) -> float:
        """The sum of a gauge or counter over its labels."""
        text = self._metrics()
        values = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? ([0-9.e+-]+)$", text, re.MULTILINE)
        assert values, f"no metric {name}"
        return sum(map(float, values))

    def label(self, metric: str, name: str) -> str:
        """What a label of a metric says."""
        found = re.search(rf'^{re.escape(metric)}\{{(?:.*,)?{re.escape(name)}="([^"]*)"', self._metrics(), re.MULTILINE)
        assert found, f"no label {name} of a metric {metric}"
        return found[1]

    def _metrics(self) -> str:
        return httpx.get(f"{self.root}/metrics", timeout=30).text


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def video(url: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}
