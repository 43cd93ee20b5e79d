"""`vllm-prune serve` with tensor parallelism on a Ray cluster of ours, its processes, and what they leave behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
from ray_head import RayNode, free_port

from vllm_prune.cluster.state import runs

OPTIONS = (
    *("-tp", "2", "--distributed-executor-backend", "ray", "--host", "127.0.0.1", "--enforce-eager"),
    *("--gpu-memory-utilization", "0.1", "--max-model-len", "4096", "--dtype", "float32"),
)
WORKER = "ray::CpuRayWorkerProc"
_SEGMENT = re.compile(r"(/dev/shm/[^ ]+)(?: \(deleted\))?$", re.MULTILINE)


class RayServer:
    """A server on `node`'s cluster; `prefix` is what its command line begins with. Use it in a `with` statement."""

    def __init__(
        self, node: RayNode, folder: Path, *options: str, prefix: tuple[str, ...] = (), **environment: str
    ) -> None:
        self.node, self.port = node, free_port()
        self.nodes = [node]
        self._log = folder / f"server-{self.port}.log"
        command = [sys.executable, "-m", "vllm_prune.cli.main", "serve", "embedded", *OPTIONS]
        self._command = [*prefix, *command, "--port", str(self.port), *options]
        self._environment = {
            **os.environ,
            **node.environment,
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            **environment,
        }

    def __enter__(self) -> RayServer:
        with self._log.open("w") as log:
            self.process = psutil.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, env=self._environment, start_new_session=True
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            processes = [*self.process.children(recursive=True), self.process]
            self.process.terminate()
            _, left = psutil.wait_procs(processes, timeout=30)
            for process in left:
                process.kill()
            self.process.wait()

    def log(self) -> str:
        return self._log.read_text()

    def wait_for(self, condition: Callable[[], object], timeout_s: float = 240) -> None:
        """Returns once `condition()` holds; fails if the server ends before."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, self.log()[-5000:]
            assert time.monotonic() < deadline, self.log()[-5000:]
            time.sleep(0.2)

    def workers(self) -> list[psutil.Process]:
        """The processes of its ranks on `nodes`: children of Ray's, not of its own."""
        return [child for node in self.nodes for child in node.processes() if _title(child).startswith(WORKER)]

    def footprint(self) -> Footprint:
        """What must be gone when it is."""
        own = [self.process, *self.process.children(recursive=True)]
        return Footprint([*own, *self.workers()])


class Footprint:
    """Processes, and the shared memory that they use."""

    def __init__(self, processes: Iterable[psutil.Process]) -> None:
        self.processes = list(processes)
        maps = [Path(f"/proc/{process.pid}/maps") for process in self.processes]
        self.segments = {Path(name) for file in maps for name in _SEGMENT.findall(_read(file))}

    def left(self) -> list[str]:
        """Those that are still there."""
        running = [f"{process.pid} {_title(process)}" for process in self.processes if runs(process)]
        return running + [str(segment) for segment in self.segments if segment.exists()]


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # ended meanwhile
        return ""


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


ACTORS = """
import ray
ray.init(logging_level="error", log_to_driver=False)
print("actors:", ray.util.list_named_actors(all_namespaces=True), "free:", ray.available_resources().get("CPU"))
"""


def actors_and_free_cpus(node: RayNode) -> str:
    """What the cluster says of its named actors (vLLM names all of its own) and of its free CPUs."""
    environment = {**os.environ, **node.environment}
    done = subprocess.run([sys.executable, "-c", ACTORS], capture_output=True, text=True, env=environment, timeout=90)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]
