"""Ray nodes of our own: apart from any other Ray of the machine, small, and gone with the test."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

# Not "ray", which without Ray would be the folder of these tests.
pytest.importorskip("ray.util", reason="Ray is not installed: pip install 'vllm-prune[ray]'")

START_TIMEOUT_S = 90
OBJECT_STORE_BYTES = 100 * 2**20
TESTS = Path(__file__).parents[1]
MODULES = os.pathsep.join(str(TESTS / folder) for folder in ("ray", "dense"))  # of the functions that ranks run


class RayNode:
    """A head, or a node that joins the head at `join`; use it in a `with` statement.

    Args:
        num_cpus: How many CPUs Ray may give away.
        ip: Its address.
        join: ip:port of a head; None: be one.
        prefix: What the command line begins with, to run elsewhere (`ip netns exec NAME`).
        num_gpus: How many GPUs it says it has; Ray takes its word.
        token: What the nodes of a cluster know each other by; None: a new one.
    """

    def __init__(
        self,
        num_cpus: int,
        ip: str = "127.0.0.1",
        join: str | None = None,
        prefix: tuple[str, ...] = (),
        token: str | None = None,
        num_gpus: int = 0,
    ) -> None:
        self.address = join or f"{ip}:{free_port()}"
        self.token = token or secrets.token_hex(32)
        self.folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # short: sockets have paths below it
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        command += ["--node-ip-address", ip, "--num-cpus", str(num_cpus), "--num-gpus", str(num_gpus)]
        command += ["--object-store-memory", str(OBJECT_STORE_BYTES), "--dashboard-agent-listen-port", str(free_port())]
        if join:
            command += ["--address", join]
        else:
            command += ["--head", "--port", self.address.rpartition(":")[2], "--include-dashboard", "false"]
            command += ["--temp-dir", str(self.folder), "--ray-client-server-port", str(free_port())]
        self._command = [*prefix, *command]
        self._log = self.folder / "start.log"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to use this cluster and no other."""
        return {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def __enter__(self) -> RayNode:
        environment = {**os.environ, **self.environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": MODULES}
        del environment["RAY_ADDRESS"]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while "--block" not in self.log():  # it explains the option once everything runs
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def stop(self) -> None:
        """Ends the node and all its processes."""
        if self._process.poll() is None:
            processes = [*self.processes(), psutil.Process(self._process.pid)]
            self._process.terminate()
            # A node whose link is cut waits for its head.
            _, left = psutil.wait_procs(processes, timeout=30)
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.wait()

    def processes(self) -> list[psutil.Process]:
        """All processes of the node, those of actors among them."""
        return psutil.Process(self._process.pid).children(recursive=True)

    def log(self) -> str:
        """What `ray start` has said so far."""
        return self._log.read_text()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
