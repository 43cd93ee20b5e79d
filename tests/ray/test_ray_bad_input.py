"""What cannot work on Ray is refused with a message, in seconds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray_head import RayNode, free_port
from ray_server import RayServer

from vllm_prune.serving.ray.placement import DEFAULT_WAIT_S, WAIT, no_room, wait_seconds

REFUSED_AT_ONCE_S = 45  # by the command itself, before vLLM starts
REFUSED_WITHIN_S = 150  # of which most is vLLM's start on a busy machine


def refusal(node: RayNode, folder: Path, *options: str, **environment: str) -> str:
    """What a server says that ends by itself with a status other than 0."""
    with RayServer(node, folder, *options, **environment) as server:
        assert server.process.wait(timeout=REFUSED_WITHIN_S) != 0
        return server.log()


@pytest.mark.long
def test_more_ranks_than_the_cluster_has_room_for(ray_head, tmp_path):
    said = refusal(ray_head, tmp_path, "-tp", "3", **{WAIT: "2"})
    assert "3 workers need 3 CPU, and all nodes together have 2 CPU (2 free)" in said
    assert "Lower --tensor-parallel-size" in said


@pytest.mark.long
def test_ranks_that_do_not_divide_the_heads(ray_head, tmp_path):
    assert "Total number of attention heads (6) must be divisible by tensor parallel size (4)" in refusal(
        ray_head, tmp_path, "-tp", "4"
    )


def test_a_cluster_that_is_not_there(ray_head, tmp_path):
    nowhere = f"127.0.0.1:{free_port()}"
    begin = time.monotonic()
    said = refusal(ray_head, tmp_path, RAY_ADDRESS=nowhere)
    assert f"RAY_ADDRESS={nowhere}: no Ray cluster answers at {nowhere}" in said
    assert "launch/ray/head.sh" in said
    assert time.monotonic() - begin < REFUSED_AT_ONCE_S


@pytest.mark.long
def test_a_head_that_goes_away_ends_the_server_and_a_new_one_serves_again(tmp_path):
    for _ in range(2):
        with RayNode(num_cpus=2) as node, RayServer(node, tmp_path) as server:
            server.wait_for(lambda server=server: "Application startup complete" in server.log())
            before = server.footprint()
            node.stop()
            assert server.process.wait(timeout=60) != 0
            deadline = time.monotonic() + 30
            while before.left():
                assert time.monotonic() < deadline, before.left()
                time.sleep(0.5)


REFUSE_GPUS = """
import ray
ray.init(logging_level="error", log_to_driver=False)
from vllm_prune.serving.ray.on_cpu import actor_resources
actor_resources()
"""


def test_a_cluster_with_gpus_is_not_for_the_cpu_build():
    with RayNode(num_cpus=1, num_gpus=1) as node:
        command = [sys.executable, "-c", REFUSE_GPUS]
        environment = {**os.environ, **node.environment}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert "RuntimeError: the Ray cluster has 1 GPU(s), and this is vLLM's CPU build" in done.stderr


def test_the_message_counts_every_resource():
    message = no_room([{"GPU": 1.0}, {"GPU": 1.0}], {"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}, 20)
    assert "after 20 s: 2 workers need 2 GPU, and all nodes together have 1 GPU (0 free)" in message


@pytest.mark.parametrize("given", ["soon", "-1", "inf", "nan"])
def test_a_wait_that_is_no_time_is_refused(monkeypatch, given):
    monkeypatch.setenv(WAIT, given)
    with pytest.raises(ValueError, match=f"{WAIT}='{given}': must be a number of seconds"):
        wait_seconds()


def test_the_wait_can_be_set(monkeypatch):
    assert wait_seconds() == DEFAULT_WAIT_S
    monkeypatch.setenv(WAIT, "600")
    assert wait_seconds() == 600


def test_without_ray_the_message_names_the_extra(tmp_path):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/__init__.py").write_text("raise ModuleNotFoundError('no Ray here')")
    command = [
        sys.executable,
        "-m",
        "vllm_prune.cli.main",
        "serve",
        "embedded",
        "--distributed-executor-backend",
        "ray",
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 2
    assert "Ray is not installed here; pip install 'vllm-prune[ray]'" in done.stderr
