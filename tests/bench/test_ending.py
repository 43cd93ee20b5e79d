"""A benchmark that is told to end leaves no server behind."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
STARTS_WITHIN_S, ENDS_WITHIN_S, GONE_WITHIN_S = 120, 60, 10  # of a busy machine


def wait_for_server(program: subprocess.Popen[str]) -> psutil.Process:
    """The server that the program has started."""
    deadline = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < deadline:
        assert program.poll() is None, program.communicate()
        for child in psutil.Process(program.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "serve" in child.cmdline():
                    return child
        time.sleep(0.05)
    raise AssertionError("no server was started")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_server_ends_with_the_program_that_started_it(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.clients", "guidellm", "-o", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as program:
        server = wait_for_server(program)
        program.send_signal(number)
        time.sleep(0.3)
        program.send_signal(number)  # as `timeout` does, to the process and to its group
        try:
            _, errors = program.communicate(timeout=ENDS_WITHIN_S)
            assert program.returncode == 130
            assert errors.splitlines() == ["benchmarks.clients: interrupted"]
            _, left = psutil.wait_procs([server], timeout=GONE_WITHIN_S)
            assert left == []
        finally:
            program.kill()
            with contextlib.suppress(psutil.NoSuchProcess):
                server.kill()
