"""Servers as process groups: started on a free port, waited for, and ended whole, whatever happens."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from vllm_prune.bench.throughput.errors import BenchmarkError

POLL_SECONDS = 0.5
TERM_GRACE_SECONDS = 20.0
LOG_TAIL_LINES = 25

Tick = Callable[[], None]


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process_group(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` in a session of its own; on leaving, end it and every process it started.

    Args:
        command: Program and arguments.
        environment: Variables on top of this process's own.
        log: File for its output, appended to.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            end_group(process)


def end_group(process: subprocess.Popen[bytes], grace_seconds: float = TERM_GRACE_SECONDS) -> None:
    """End the process group that `process` leads: politely, then, or after another Ctrl-C, by force whoever is left."""
    try:
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_seconds)
    finally:
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    # The group's id stays taken as long as one of its processes lives; when none does, there is nothing to end.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path, timeout_s: float, tick: Tick) -> None:
    """Return when the server answers `/health`; call `tick` while waiting.

    Raises:
        BenchmarkError: the server ended, or did not answer within `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while not _is_healthy(port):
        tick()
        if process.poll() is not None:
            raise BenchmarkError(f"the server ended with status {process.returncode} at start; {log}:\n{log_tail(log)}")
        if time.monotonic() > deadline:
            raise BenchmarkError(
                f"the server did not answer within {timeout_s:.0f} s; raise --start-timeout; {log}:\n{log_tail(log)}"
            )
        time.sleep(POLL_SECONDS)


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def wait_for_end(process: subprocess.Popen[bytes], timeout_s: float, tick: Tick) -> int:
    """Return the status of `process` when it has ended; call `tick` while waiting.

    Raises:
        BenchmarkError: it did not end within `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while process.poll() is None:
        if time.monotonic() > deadline:
            raise BenchmarkError(f"no result within {timeout_s:.0f} s; raise --run-timeout or lower --num-prompts")
        tick()
        time.sleep(POLL_SECONDS)
    return int(process.returncode)


def log_tail(log: Path, lines: int = LOG_TAIL_LINES) -> str:
    """The last lines of a log file."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
