"""launch/ray/: head, join, serve, stop and their mistakes, and `vllm-prune doctor --ray`, on a real cluster."""

import importlib.util
import json
import socket
from pathlib import Path

import psutil
import pytest
from launched_cluster import SMALL, LaunchedCluster, free_port

from vllm_prune.cluster.__main__ import main
from vllm_prune.cluster.state import runs
from vllm_prune.embedded import model_path


@pytest.fixture(scope="module")
def cluster():
    """A head and a worker on this machine."""
    with LaunchedCluster() as launched:
        joined = launched.script("join", launched.address, "--dir", str(launched.folder / "worker"), *SMALL)
        assert joined.returncode == 0, joined.stderr
        yield launched


def refused(done, *words):
    """A message with a remedy, and exit status 1."""
    assert done.returncode == 1, done.stdout
    assert "mend: " in done.stderr
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr


# --- the whole: head, join, doctor, a node that disagrees, a node that leaves, stop ---


def test_doctor_looks_at_every_node(cluster):
    done = cluster.doctor("--ray", cluster.address, "--model", str(model_path()), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    checks = json.loads(done.stdout)["checks"]
    for node in ("node 127.0.0.2 (head)", "node 127.0.0.3"):
        found = [check for check in checks if check["name"] == node]
        assert len(found) >= 3  # versions, plugin, model
        assert {check["status"] for check in found} <= {"ok", "warn"}


def test_doctor_prints_a_table(cluster):
    done = cluster.doctor("--ray", cluster.address, "--model", "/no/such/model")
    header, head, worker = done.stdout.splitlines()[:3]
    assert header.split() == ["node", "host", "CPUs", "GPUs", "python", "vllm-prune", "vllm", "torch", "transformers",
                              "ray", "model"]  # fmt: skip
    assert head.startswith("127.0.0.2 (head)")
    assert worker.startswith("127.0.0.3")
    assert head.endswith("missing")
    assert done.returncode == 1
    assert "fail  node 127.0.0.3: no /no/such/model/config.json there" in done.stdout


def test_serve_wants_what_the_cluster_has(cluster):
    refused(cluster.script("serve", "embedded", "-tp", "9"), "9 CPUs", "the cluster has 4", "join")


def test_serve_wants_the_model_on_every_node(cluster, tmp_path):
    refused(cluster.script("serve", str(tmp_path)), f"node 127.0.0.3: no {tmp_path}/config.json there")


def test_a_node_with_other_versions_does_not_join(cluster, tmp_path):
    other = tmp_path / "transformers-4.1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 4.1.0\n")
    options = ("--node-ip", "127.0.0.4", "--dir", str(cluster.folder / "other"), *SMALL)
    done = cluster.script("join", cluster.address, *options, PYTHONPATH=str(tmp_path))
    refused(done, "do not agree", "transformers 4.1.0, head: ", "setup.sh")
    assert not (cluster.folder / "other/worker.json").exists()  # stopped again


def test_stop_ends_its_own_node_and_no_other(cluster):
    worker = cluster.family("worker", "worker")
    stopped = cluster.script("stop", "--dir", str(cluster.folder / "worker"))
    assert "ended the worker" in stopped.stdout
    assert [process for process in worker if runs(process)] == []
    assert all(process.is_running() for process in cluster.family()[:1])
    done = cluster.doctor("--ray", cluster.address)
    assert done.returncode == 0, done.stdout
    assert "warn  node 127.0.0.3: has left the cluster" in done.stdout


# --- mistakes ---


def test_a_port_that_is_taken(cluster):
    done = cluster.script("head", "--port", str(cluster.port), "--dir", str(cluster.folder / "second"))
    refused(done, f":{cluster.port}: Address already in use", "--port")


def test_a_second_head_in_the_same_folder(cluster):
    refused(cluster.script("head", "--port", str(free_port())), "already a head of the cluster", "stop.sh")


def test_http_port_that_is_taken(cluster):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        refused(cluster.script("serve", "embedded", "--port", str(port)), f"127.0.0.1:{port}", "--port")


@pytest.fixture
def no_cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_PRUNE_RAY_DIR", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "ab" * 32)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["join", "127.0.0.2:{free}"], ["no Ray cluster answers at 127.0.0.2:", "head.sh", "join again"]),
        (["join", "somewhere"], ["'somewhere' is not an address", "HOST:PORT"]),
        (["join", "ray://127.0.0.2:10001"], ["is not an address"]),
        (["head", "--node-ip", "127.0.0.1"], ["127.0.0.1: Ray would put", "127.0.0.2"]),
        (["head", "--dir", "/tmp/" + "long" * 20], ["has a path of 85 characters", "at most 40"]),
        (["serve", "embedded"], ["this machine is in no cluster", "head.sh"]),
        (["serve", "embedded", "--address", "127.0.0.2:{free}"], ["no Ray cluster answers"]),
    ],
)
def test_mistakes_are_told_at_once(no_cluster, capsys, arguments, words):
    assert main([argument.format(free=free_port()) for argument in arguments]) == 1
    message = capsys.readouterr().err
    assert "mend: " in message
    for word in words:
        assert word in message


def test_without_ray(no_cluster, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["head"]) == 1
    assert "bash launch/setup.sh --extras ray" in capsys.readouterr().err


def test_without_a_token(tmp_path, no_cluster, capsys, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.2", 0))
        listener.listen()
        folder = Path("/tmp") / f"vpr-{free_port()}"
        assert main(["join", f"127.0.0.2:{listener.getsockname()[1]}", "--dir", str(folder)]) == 1
        folder.rmdir()
    assert f"no token of the cluster in {tmp_path / 'token'}" in capsys.readouterr().err


def test_stop_leaves_a_process_that_has_got_the_number(no_cluster, tmp_path, capsys):
    own = psutil.Process()
    started = {"role": "head", "pid": own.pid, "created": own.create_time() - 100, "address": "a:1", "node_ip": "a"}
    (tmp_path / "head.json").write_text(json.dumps(started))
    assert main(["stop"]) == 0
    assert "is running" in capsys.readouterr().out
