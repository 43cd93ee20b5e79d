"""A server whose process is killed, so that it can tell nobody: nothing of it is left after seconds."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest
from serving_cases import QUESTION
from serving_media import data_url, mp4
from serving_server import OPTIONS, Server, text, video

pytestmark = pytest.mark.slow
WIDE = ("--tensor-parallel-size", "2")
GONE_WITHIN_S = 30


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


@pytest.mark.parametrize(("options", "least"), [(WIDE, 4), ((*WIDE, "--api-server-count", "2"), 6)])
def test_nothing_outlives_a_server_that_was_killed(model, tmp_path, monkeypatch, options, least):
    """The API server (or what started several), the engine core, two workers."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    with Server(model, tmp_path, prune="default", options=(*OPTIONS, *options)) as server:
        server.ask(video(data_url(mp4(16, seed=90))), text(QUESTION))
        assert len(family(server)) >= least
        os.kill(server.pid, signal.SIGKILL)
        deadline = time.monotonic() + GONE_WITHIN_S
        while (left := family(server)) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in left:
            process.kill()
        assert not left, server.log()[-3000:]
