"""Servers end with everything they started."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from vllm_prune.bench.throughput.errors import BenchmarkError
from vllm_prune.bench.throughput.processes import (
    end_group,
    free_port,
    process_group,
    wait_for_end,
    wait_until_healthy,
)

# Starts a child that ignores SIGTERM, writes its pid, and sleeps.
STUBBORN = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
                          "print('ready', flush=True); time.sleep(600)"], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def first_line(log):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if "\n" in (text := log.read_text() if log.exists() else ""):
            return text.splitlines()[0]
        time.sleep(0.02)
    raise AssertionError("no output")


def wait_until_gone(pid):
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
def test_group_ends_with_its_stubborn_child(tmp_path, error):
    log = tmp_path / "log"
    try:
        with process_group([sys.executable, "-c", STUBBORN], {}, log) as process:
            child = int(first_line(log))
            assert alive(child)
            if error:
                raise error
    except (KeyboardInterrupt, RuntimeError):
        assert error
    assert process.returncode is not None
    assert wait_until_gone(child)


def test_child_of_a_leader_that_died_is_ended(tmp_path):
    log = tmp_path / "log"
    with process_group([sys.executable, "-c", STUBBORN], {}, log) as process:
        child = int(first_line(log))
        process.kill()
        process.wait()
    assert wait_until_gone(child)


IGNORES_SIGTERM = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def ctrl_c_counts() -> Iterator[None]:
    """Also where the tests run behind a shell's `&`, which lets its programs ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_counts")
def test_a_second_ctrl_c_ends_a_stubborn_leader_at_once(tmp_path):
    log = tmp_path / "log"
    second = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    try:
        with process_group([sys.executable, "-c", IGNORES_SIGTERM], {}, log) as process:
            first_line(log)
            second.start()
        raise AssertionError("nothing came")
    except KeyboardInterrupt:
        assert process.returncode == -signal.SIGKILL


def test_ending_twice_is_harmless(tmp_path):
    with process_group([sys.executable, "-c", "pass"], {}, tmp_path / "log") as process:
        process.wait()
    end_group(process)


def test_environment_is_added(tmp_path):
    code = "import os; print(os.environ['ADDED'], 'PATH' in os.environ)"
    with process_group([sys.executable, "-c", code], {"ADDED": "yes"}, tmp_path / "log") as process:
        assert wait_for_end(process, 20, lambda: None) == 0
    assert (tmp_path / "log").read_text() == f"yes {'PATH' in os.environ}\n"


def test_a_server_that_dies_shows_its_log(tmp_path):
    log = tmp_path / "log"
    dying = process_group([sys.executable, "-c", "raise SystemExit('no memory')"], {}, log)
    with dying as process, pytest.raises(BenchmarkError, match=r"status 1 at start(.|\n)*no memory"):
        wait_until_healthy(process, free_port(), log, 20, lambda: None)


def test_a_server_that_never_answers_times_out(tmp_path):
    ticks = []
    silent = process_group(SLEEP, {}, tmp_path / "log")
    with silent as process, pytest.raises(BenchmarkError, match="raise --start-timeout"):
        wait_until_healthy(process, free_port(), tmp_path / "log", 0.2, lambda: ticks.append(1))
    assert ticks


def test_a_client_that_hangs_times_out(tmp_path):
    hanging = process_group(SLEEP, {}, tmp_path / "log")
    with hanging as process, pytest.raises(BenchmarkError, match="raise --run-timeout"):
        wait_for_end(process, 0.2, lambda: None)
