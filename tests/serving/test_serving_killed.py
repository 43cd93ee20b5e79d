"""A server whose process is killed, so that it can tell nobody: nothing of it is left after seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from serving_cases import QUESTION
from serving_media import data_url, mp4
from serving_server import FEW_BLOCKS, OPTIONS, Server, text, video

pytestmark = pytest.mark.slow
WIDE = ("--tensor-parallel-size", "2")
GONE_WITHIN_S, STARTS_WITHIN_S = 30, 120


def children(pid: int) -> list[psutil.Process]:
    """All that have been started by a process, and by those."""
    try:
        found = psutil.Process(pid).children(recursive=True)
        return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]
    except psutil.NoSuchProcess:
        return []


def family(server: Server) -> list[psutil.Process]:
    """All processes of the server's session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == server.pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return found


@pytest.mark.parametrize(
    ("options", "least"),
    [pytest.param(WIDE, 4, marks=pytest.mark.long), ((*WIDE, "--api-server-count", "2"), 6)],
)
def test_nothing_outlives_a_server_that_was_killed(model, tmp_path, monkeypatch, options, least):
    """The API server (or what started several), the engine core, two workers."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    with Server(model, tmp_path, prune="default", options=(*OPTIONS, *FEW_BLOCKS, *options)) as server:
        server.ask(video(data_url(mp4(16, seed=90))), text(QUESTION))
        assert len(family(server)) >= least
        os.kill(server.pid, signal.SIGKILL)
        deadline = time.monotonic() + GONE_WITHIN_S
        while (left := family(server)) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in left:
            process.kill()
        assert not left, server.log()[-3000:]


@pytest.mark.long
def test_a_server_that_is_told_to_stop_while_its_engine_starts_does_so(model, tmp_path):
    """Not ten minutes later, which is how long vLLM would wait for an engine that it has not greeted."""
    command = [sys.executable, "-m", "vllm_prune.cli.main", "serve", str(model), "--uds", str(tmp_path / "socket")]
    command += [*OPTIONS, "--prune", "default"]
    log = tmp_path / "log"
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            deadline = time.monotonic() + STARTS_WITHIN_S
            while not any("spawn_main" in " ".join(child.cmdline()) for child in children(process.pid)):
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline, "no engine was started"
                time.sleep(0.05)
            time.sleep(1)
            process.send_signal(signal.SIGTERM)
            process.wait(GONE_WITHIN_S)
            assert process.returncode != 0
        finally:
            for child in children(process.pid):
                child.kill()
            process.kill()
