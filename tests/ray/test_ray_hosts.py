"""Tensor parallelism over two hosts with one rank each: it answers, and a cut link ends it in bounded time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import Host, two_hosts, why_not
from ray_head import RayNode
from ray_server import RayServer

from vllm_prune.embedded import clips

pytestmark = pytest.mark.long

END_WITHIN_S = 120


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    if reason := why_not():
        pytest.skip(f"no two hosts here: {reason}")
    with two_hosts() as both:
        yield both


@pytest.fixture(scope="module")
def server(hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayServer]:
    first, second = hosts
    head = RayNode(num_cpus=1, ip=first.ip, prefix=first.prefix)
    other = RayNode(num_cpus=1, ip=second.ip, join=head.address, prefix=second.prefix, token=head.token)
    folder = tmp_path_factory.mktemp("hosts")
    second.hide(head.folder)  # they would take each other's notes there for their own
    with head, other, RayServer(head, folder, prefix=first.prefix) as running:
        running.nodes.append(other)
        running.wait_for(lambda: chat(running, first).returncode == 0)
        yield running


def chat(server: RayServer, host: Host) -> subprocess.CompletedProcess[str]:
    """`vllm-prune chat` on the server's host, about the first sample clip."""
    clip = clips()[0]
    command = [sys.executable, "-m", "vllm_prune.cli.main", "chat", "--json"]
    command += ["--url", f"http://127.0.0.1:{server.port}/v1", str(clip.path), clip.questions[0].question]
    return subprocess.run([*host.prefix, *command], capture_output=True, text=True, timeout=END_WITHIN_S)


def test_each_host_has_one_rank_and_shared_memory_of_its_own(server, hosts):
    ranks = server.workers()
    assert len(ranks) == 2
    assert len({os.readlink(f"/proc/{rank.pid}/ns/net") for rank in ranks}) == 2
    assert len({os.stat(f"/proc/{rank.pid}/root/dev/shm").st_dev for rank in ranks}) == 2


def test_it_answers(server, hosts):
    answered = chat(server, hosts[0])
    assert answered.returncode == 0, answered.stderr
    assert clips()[0].questions[0].answer in json.loads(answered.stdout)["answer"]


def test_a_cut_link_ends_the_server_and_the_request(server, hosts, tmp_path: Path):
    begin = time.monotonic()
    hosts[1].unplug()
    answered = chat(server, hosts[0])
    assert answered.returncode != 0
    assert server.process.wait(timeout=END_WITHIN_S) != 0
    assert time.monotonic() - begin < END_WITHIN_S
