"""A Ray cluster of its own on this machine's loopback, with replicas of the embedded model, for ray_replicas.py."""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from vllm_prune.bench.throughput.errors import BenchmarkError
from vllm_prune.bench.throughput.processes import process_group
from vllm_prune.embedded import clips

ROOT = Path(__file__).parents[1]
START_TIMEOUT_S = 400
SCRIPT_TIMEOUT_S = 150
METRICS_TIMEOUT_S = 20  # Ray passes counters on from time to time
ENGINE = {
    "enforce_eager": True,
    "dtype": "float32",
    "gpu_memory_utilization": 0.1,
    "max_model_len": 4096,
    "block_size": 32,
    "max_num_seqs": 8,
}
# Query-free, so that a video's blocks are shared between questions, and little of it dropped, so that there are some.
PRUNE = '{"method": "uniform", "keep_ratio": 0.9}'


@dataclass(frozen=True)
class Outcome:
    """What a client got: the status (0: the connection broke), the answer's text, and how many tokens were cached."""

    video: int
    status: int
    text: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0


class Cluster:
    """A Ray cluster on the loopback with replicas on it; use it in a `with` statement.

    Args:
        replicas: How many there are from the start.
        most: How many the load may raise that to; default: no more.
        options: Further ones of launch/ray/replicas.py.
    """

    def __init__(self, replicas: int, most: int | None = None, options: Sequence[str] = ()) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vpr-", dir="/tmp"))
        self.replicas, self.most, self._options = replicas, most or replicas, options
        self.server: subprocess.Popen[bytes] | None = None
        self.http, self.metrics_port, gcs, client = (free_port() for _ in range(4))
        self.address = f"127.0.0.2:{gcs}"
        self.url = f"http://127.0.0.1:{self.http}"
        self.log = self.folder / "replicas.log"
        self._head_options = ["--port", str(gcs), "--ray-client-server-port", str(client), "--include-dashboard=false"]
        self._head_options += ["--metrics-export-port", str(self.metrics_port), "--object-store-memory=100000000"]
        self._head_options += ["--num-cpus", str(2 * self.most + 2)]
        self.environment = {
            **os.environ,
            "VLLM_PRUNE_VENV": str(Path(sys.executable).parents[1]),
            "VLLM_PRUNE_RAY_DIR": str(self.folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "OMP_NUM_THREADS": "1",
            "RAY_metrics_report_interval_ms": "2000",
        }

    def __enter__(self) -> Cluster:
        try:
            self.script("head", *self._head_options)
            self._start_replicas()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.script("stop")
        if self.server is not None:
            self.server.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def script(self, name: str, *arguments: str) -> str:
        """Run one of launch/ray/'s scripts; what it prints. One that is broken off ends what it has started itself."""
        log = self.folder / f"{name}.log"
        command = ["bash", str(ROOT / "launch/ray" / f"{name}.sh"), *arguments]
        with process_group(command, self.environment, log) as process:
            status = process.wait(SCRIPT_TIMEOUT_S)
        if status:
            raise BenchmarkError(f"{name}: {log.read_text()}")
        return log.read_text()

    def _start_replicas(self) -> None:
        command = [sys.executable, str(ROOT / "launch/ray/replicas.py"), "embedded", "--prune", PRUNE, "--cpu"]
        command += ["--min-replicas", str(self.replicas), "--max-replicas", str(self.most), "--port", str(self.http)]
        command += ["--engine", json.dumps(ENGINE), *self._options]
        with self.log.open("w") as output:
            self.server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=self.environment)
        deadline = time.monotonic() + START_TIMEOUT_S
        while "is served at" not in self.log.read_text():
            if self.server.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkError(f"no replicas: {self.log.read_text()[-2000:]}")
            time.sleep(0.5)

    def ask(self, video: int, question: str, timeout_s: float = 60, **more: Any) -> Outcome:
        """Ask one question, with `more` in the body, and take whatever comes back."""
        content = [{"type": "video_url", "video_url": {"url": video_url(video)}}, {"type": "text", "text": question}]
        body = {"model": "embedded", "max_completion_tokens": 4, "temperature": 0.0, **more}
        body["messages"] = [{"role": "user", "content": content}]
        try:
            response = httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=timeout_s)
        except httpx.TransportError as error:
            return Outcome(video, 0, f"{type(error).__name__}: {error}")
        if response.status_code != 200:
            return Outcome(video, response.status_code, response.text)
        answer = response.json()
        usage = answer["usage"]
        cached = (usage["prompt_tokens_details"] or {}).get("cached_tokens") or 0
        return Outcome(video, 200, answer["choices"][0]["message"]["content"], usage["prompt_tokens"], cached)

    def counters(self, requests: int) -> dict[str, Counter[str]]:
        """vLLM's counters of each replica once they know of that many requests: queries and hits of the caches."""
        deadline = time.monotonic() + METRICS_TIMEOUT_S
        while True:
            found = self._read_counters()
            if sum(counts["request_success"] for counts in found.values()) >= requests or time.monotonic() > deadline:
                return found
            time.sleep(1)

    def _read_counters(self) -> dict[str, Counter[str]]:
        text = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30).text
        found: dict[str, Counter[str]] = {}
        pattern = r'^ray_vllm_(\w+?)_total\{[^}]*ReplicaId="(\w+)"[^}]*\} ([0-9.e+]+)$'
        for name, replica, value in re.findall(pattern, text, re.MULTILINE):
            found.setdefault(replica, Counter())[name] += int(float(value))
        return found

    def replica_processes(self) -> list[psutil.Process]:
        """The actors that hold an engine, oldest first."""
        head = json.loads((self.folder / "head.json").read_text())["pid"]
        family = psutil.Process(head).children(recursive=True)
        return sorted((p for p in family if "LLMServer" in _command(p)), key=lambda process: process.create_time())


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def video_url(number: int) -> str:
    """One of any number of different videos: an embedded clip, with a comment that makes it another file."""
    clip = clips()[number % len(clips())]
    data = clip.path.read_bytes() + _free_box(number // len(clips()))
    return f"data:video/mp4;base64,{base64.b64encode(data).decode()}"


def _free_box(number: int) -> bytes:
    """Nothing for 0, else a box that players of mp4 skip."""
    return (8 + number).to_bytes(4, "big") + b"free" + bytes(number) if number else b""
