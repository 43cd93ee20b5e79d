"""A Ray cluster on the loopback, started and stopped by launch/ray/'s scripts."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
SMALL = ("--num-cpus=2", "--object-store-memory=100000000")
TIMEOUT_S = 180


class LaunchedCluster:
    """A head, and workers by `join`; use it in a `with` statement."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vpr-", dir="/tmp"))
        self.port, self.client_port = free_port(), free_port()
        self.address = f"127.0.0.2:{self.port}"
        self.environment = {
            **os.environ,
            "VLLM_PRUNE_VENV": str(Path(sys.executable).parents[1]),
            "VLLM_PRUNE_RAY_DIR": str(self.folder / "head"),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "HF_HUB_OFFLINE": "1",
        }
        self.environment.pop("RAY_ADDRESS", None)

    def __enter__(self) -> LaunchedCluster:
        options = ("--ray-client-server-port", str(self.client_port), "--include-dashboard=false")
        started = self.script("head", "--port", str(self.port), *options, *SMALL)
        assert started.returncode == 0, started.stderr
        return self

    def __exit__(self, *_: object) -> None:
        for folder in sorted(self.folder.iterdir(), reverse=True):  # workers before the head
            self.script("stop", "--dir", str(folder))
        shutil.rmtree(self.folder)

    def script(self, name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.command(["bash", str(ROOT / "launch/ray" / f"{name}.sh"), *arguments], **variables)

    def doctor(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.command([sys.executable, "-m", "vllm_prune.cli.main", "doctor", *arguments])

    def command(self, command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**self.environment, **variables}
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment)

    def family(self, folder: str = "head", role: str = "head") -> list[psutil.Process]:
        """All processes of a node."""
        pid = json.loads((self.folder / folder / f"{role}.json").read_text())["pid"]
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
