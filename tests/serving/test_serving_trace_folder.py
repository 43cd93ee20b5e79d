"""The folder of traces: private, bounded, and no reason for a request to fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from serving_cases import ask
from serving_engine import prune

from vllm_prune.config import PruneConfigError
from vllm_prune.serving.worker import trace_folder
from vllm_prune.serving.worker.trace import TraceWriter
from vllm_prune.serving.worker.trace_folder import TraceFolder
from vllm_prune.trace_limits import TraceLimits


def name(number: int) -> str:
    return f"{number:06d}-{'0' * 16}.npz"


def fill(folder: TraceFolder, numbers: range, size: int = 10) -> None:
    for number in numbers:
        path = folder.write(name(number), bytes(size))
        assert path is not None
        os.utime(path, (number, number))


def traces(path: Path) -> list[int]:
    return sorted(int(file.name[:6]) for file in path.glob("*.npz"))


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_only_the_servers_user_reads_it(tmp_path):
    before = os.umask(0)
    try:
        path = TraceFolder(str(tmp_path / "a" / "traces"), TraceLimits()).write(name(1), b"x")
    finally:
        os.umask(before)
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(("permissions", "warned"), [(0o755, True), (0o770, True), (0o700, False)])
def test_a_folder_that_was_there_keeps_its_mode_and_that_is_told(tmp_path, monkeypatch, permissions, warned):
    tmp_path.chmod(permissions)
    told = []
    monkeypatch.setattr(trace_folder.logger, "warning", lambda text, *values: told.append(text % values))
    path = TraceFolder(str(tmp_path), TraceLimits()).write(name(1), b"x")
    assert (mode(tmp_path), mode(path)) == (permissions, 0o600)
    assert [f"keeps its mode {permissions:o}, so other users can" in text for text in told] == [True] * warned


def test_the_latest_files_stay(tmp_path):
    fill(TraceFolder(str(tmp_path), TraceLimits(files=20)), range(100))
    left = traces(tmp_path)
    assert 18 <= len(left) <= 20
    assert left == list(range(100 - len(left), 100))


def test_the_latest_bytes_stay(tmp_path):
    fill(TraceFolder(str(tmp_path), TraceLimits(bytes=1000)), range(50), size=90)
    left = traces(tmp_path)
    assert 9 <= len(left) <= 11
    assert left == list(range(50 - len(left), 50))


def test_earlier_runs_and_other_writers_count(tmp_path):
    fill(TraceFolder(str(tmp_path), TraceLimits()), range(30))
    writers = [TraceFolder(str(tmp_path), TraceLimits(files=20)) for _ in range(2)]
    for number in range(30, 90):
        fill(writers[number % 2], range(number, number + 1))
        assert len(traces(tmp_path)) <= 2 * 20
    assert traces(tmp_path)[-15:] == list(range(75, 90))


def test_what_others_put_there_is_theirs(tmp_path):
    theirs = [tmp_path / "mine.npz", tmp_path / "notes.txt", tmp_path / "000001.npz"]
    for path in theirs:
        path.write_bytes(bytes(5000))
    fill(TraceFolder(str(tmp_path), TraceLimits(files=1, bytes=100)), range(5))
    assert all(path.exists() for path in theirs)
    assert {path.name for path in tmp_path.glob("*.npz")} == {"mine.npz", "000001.npz", name(4)}


def test_a_trace_above_the_limit_is_left_out(tmp_path):
    folder = TraceFolder(str(tmp_path), TraceLimits(bytes=100))
    assert folder.write(name(1), bytes(101)) is None
    assert (traces(tmp_path), folder.take_lost(), folder.take_lost()) == ([], 1, 0)


@pytest.mark.parametrize("limits", [{"files": 0}, {"files": -1}, {"bytes": 1.5}, {"bytes": True}])
def test_limits_are_checked(limits):
    with pytest.raises(PruneConfigError, match=r"^trace_limits\.(files|bytes)=.*an integer of 1 or more"):
        TraceLimits(**limits)


def test_a_folder_that_is_gone_is_made_again(tmp_path):
    folder = TraceFolder(str(tmp_path / "traces"), TraceLimits())
    (tmp_path / "traces").rmdir()
    assert folder.write(name(1), b"x") is not None


def test_a_file_in_its_place_is_logged_once_and_every_trace_counted(tmp_path, monkeypatch):
    place, said = tmp_path / "traces", []
    place.write_text("a file")
    monkeypatch.setattr(trace_folder.logger, "error", lambda message, *values: said.append(message % values))
    folder = TraceFolder(str(place), TraceLimits())
    assert [folder.write(name(i), b"x") for i in range(3)] == [None] * 3
    assert len(said) == 1
    assert said[0].startswith(f"trace={str(place)!r}: cannot be written: ")
    assert folder.take_lost() == 3
    place.unlink()
    assert folder.write(name(4), b"x") is not None
    assert folder.take_lost() == 0


FULL = """
import os, resource, sys
from vllm_prune.serving.worker.trace_folder import TraceFolder
from vllm_prune.trace_limits import TraceLimits
folder = TraceFolder(sys.argv[1], TraceLimits())
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
written = [folder.write(f"{i:06d}-{'0' * 16}.npz", bytes(size)) for i, size in enumerate((5000, 900, 5000))]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert [path is None for path in written] == [True, False, True], written
assert (folder.take_lost(), os.listdir(sys.argv[1])) == (2, [written[1].name])
"""


def test_a_write_that_stops_half_way_leaves_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("config", ["default", {"method": "uniform", "keep_ratio": 0.5}])
def test_the_engine_answers_without_a_place_for_traces(engine, tmp_path, monkeypatch, config):
    """One that needs no question is written when it is encoded, one that has one after the first layers."""
    question = "What is red?"
    expected = engine.run([prune(ask(16, 112, 112, seed=71, question=question), config)])[0].token_ids
    engine.forget()
    writer = TraceWriter(str(tmp_path / "traces"))
    for owner in (engine.model, engine.model._encoder_rows, engine.model._dense_prefix):
        monkeypatch.setattr(owner, "_trace", writer)
    (tmp_path / "traces").rmdir()
    (tmp_path / "traces").write_text("a file")
    lost = []
    take = writer.take_lost
    monkeypatch.setattr(writer, "take_lost", lambda: lost.append(take()) or lost[-1])
    assert engine.run([prune(ask(16, 112, 112, seed=71, question=question), config)])[0].token_ids == expected
    assert sum(lost) == 1
