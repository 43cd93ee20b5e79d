"""A child process ends with its parent, however it was started and whatever it does about SIGTERM."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from vllm_prune.serving.parent_watch import Watching

CHILD = """
import os, signal, subprocess, sys, time

class Owner:
    @staticmethod
    def main(stubborn):
        if stubborn:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) if stubborn else None
        print(os.getpid(), own.pid if own else "", flush=True)
        while True:
            time.sleep(1)
"""
PARENT = """
import multiprocessing, sys
from vllm_prune.serving.parent_watch import Watching
import child_of_test

if __name__ == "__main__":
    original = child_of_test.Owner.main
    child_of_test.Owner.main = Watching("child_of_test", "Owner.main")
    process = multiprocessing.get_context(sys.argv[1]).Process(
        target=child_of_test.Owner.main, args=(sys.argv[2] == "stubborn",)
    )
    process.start()
    process.join()
"""
GONE_WITHIN_S = 60  # of a busy machine; it takes 1 s, and 6 s if SIGTERM does not help


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize(
    ("method", "manner"),
    [("spawn", "polite"), ("spawn", "stubborn"), ("fork", "polite"), ("forkserver", "polite")],
)
def test_a_child_ends_when_its_parent_is_killed(tmp_path, method, manner):
    (tmp_path / "child_of_test.py").write_text(CHILD)
    (tmp_path / "parent_of_test.py").write_text(PARENT)
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), root])}
    command = [sys.executable, str(tmp_path / "parent_of_test.py"), method, manner]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        family = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(family) == (2 if manner == "stubborn" else 1)
        assert not any(map(gone, family))
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + GONE_WITHIN_S
        while not all(map(gone, family)):
            assert time.monotonic() < deadline, family
            time.sleep(0.1)


def test_what_a_new_process_is_given_is_a_place():
    """That process begins before plugins are loaded in it, so that it finds the original there."""
    watching = Watching("os.path", "join")
    assert watching("a", "b") == os.path.join("a", "b")
    assert watching.__wrapped__ is os.path.join
    assert pickle.loads(pickle.dumps(watching))("a", "b") == os.path.join("a", "b")
