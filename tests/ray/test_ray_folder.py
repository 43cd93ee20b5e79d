"""The folder of launch/ray/'s commands, where another user got there first."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys

import psutil
import pytest

from vllm_prune.cluster import folder as own_folder
from vllm_prune.cluster import state
from vllm_prune.cluster.__main__ import main

COMMANDS = {
    "head": ["head", "--node-ip", "127.0.0.9"],
    "join": ["join", "127.0.0.9:{port}"],
    "serve": ["serve", "embedded"],
    "serve elsewhere": ["serve", "embedded", "--address", "127.0.0.9:1"],
    "stop": ["stop"],
}


@pytest.fixture
def bystander():
    """A process of this user that these commands did not start."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


@pytest.fixture
def folder(tmp_path, bystander, monkeypatch):
    """A folder that says the bystander is a head, at an address that somebody else listens at."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    made = tmp_path / "node"
    made.mkdir(mode=0o700)
    created = psutil.Process(bystander.pid).create_time()
    told = {"role": "head", "pid": bystander.pid, "created": created, "address": "127.0.0.9:1", "node_ip": "127.0.0.9"}
    (made / "head.json").write_text(json.dumps(told))
    return made


def another_user(monkeypatch) -> None:
    """All that is here belongs to somebody else than whoever runs the command now."""
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)


def link_to_it(folder):
    link = folder.parent / "link"
    link.symlink_to(folder)
    return link


BY_WHAT = {
    "another user's": lambda folder, patch: another_user(patch) or folder,
    "open to all": lambda folder, patch: folder.chmod(0o777) or folder,
    "open to the group": lambda folder, patch: folder.chmod(0o750) or folder,
    "a link": lambda folder, patch: link_to_it(folder),
    "a file": lambda folder, patch: folder / "head.json",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("what", BY_WHAT)
def test_no_command_uses_a_folder_of_others(folder, bystander, monkeypatch, capsys, command, what):
    monkeypatch.setattr(own_folder, "_LONGEST", 4096)
    with monkeypatch.context() as patch, socket.create_server(("127.0.0.9", 0)) as head:
        given = BY_WHAT[what](folder, patch)
        words = [word.format(port=head.getsockname()[1]) for word in COMMANDS[command]]
        assert main([*words, "--dir", str(given)]) == 1
    message = capsys.readouterr().err
    assert str(given) in message
    assert "mend: " in message
    assert ("chmod 700" in message) == what.startswith("open")
    assert bystander.poll() is None
    assert os.listdir(folder) == ["head.json"]  # nothing was added


@pytest.mark.parametrize("what", ["a link", "a named pipe", "a folder"])
def test_a_file_that_is_none_is_not_read(folder, capsys, what):
    file = folder / "head.json"
    file.rename(folder.parent / "elsewhere.json")
    {
        "a link": lambda: file.symlink_to(folder.parent / "elsewhere.json"),
        "a named pipe": lambda: os.mkfifo(file),
        "a folder": file.mkdir,
    }[what]()
    assert main(["stop", "--dir", str(folder)]) == 1
    assert f"{file} is not used" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["{", "[]", '{"pid": 1}', {"pid": "x"}, {"address": "nowhere"}, {"created": None}])
def test_a_file_that_says_something_else_is_told(folder, capsys, change):
    file = folder / "head.json"
    told = json.loads(file.read_text())
    file.write_text(change if isinstance(change, str) else json.dumps(told | change))
    assert main(["stop", "--dir", str(folder)]) == 1
    assert f"{file} does not say what was started" in capsys.readouterr().err


def test_a_record_follows_no_link(folder):
    victim = folder.parent / "precious"
    victim.write_text("mine")
    (folder / "server.json").symlink_to(victim)
    state.record(folder, "server", os.getpid(), "127.0.0.9:1", "127.0.0.9")
    assert victim.read_text() == "mine"
    assert stat.S_IMODE((folder / "server.json").lstat().st_mode) == 0o600
    assert state.recall(folder, "server").pid == os.getpid()


def test_a_process_of_another_user_is_none_of_ours(folder, bystander, monkeypatch):
    started = state.recall(folder, "head")
    assert started.process().pid == bystander.pid
    another_user(monkeypatch)
    assert started.process() is None


def test_a_folder_is_made_for_its_user_only(tmp_path, monkeypatch):
    monkeypatch.setattr(own_folder, "_LONGEST", 4096)
    own_folder.prepare(tmp_path / "new" / "node")
    assert stat.S_IMODE((tmp_path / "new" / "node").stat().st_mode) == 0o700
    own_folder.prepare(tmp_path / "new" / "node")
