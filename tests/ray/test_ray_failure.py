"""A rank's process is killed while the server starts, while it is idle, in a prefill, in a decode; or the API server.

In each case the client has its error within 30 seconds, the server ends with a status other than 0, and neither a
process nor shared memory nor an actor stays behind.
"""

from __future__ import annotations

import base64
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from ray_head import RayNode
from ray_server import Footprint, RayServer, actors_and_free_cpus

from vllm_prune.embedded import clips

pytestmark = pytest.mark.long
ERROR_WITHIN_S = 30
GONE_WITHIN_S = 30


def healthy(server: RayServer) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{server.port}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def client(server: RayServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0, timeout=90)


def ask(server: RayServer, **options):
    """Asks the embedded model about its longest clip."""
    clip = clips()[-1]
    url = "data:video/mp4;base64," + base64.b64encode(clip.path.read_bytes()).decode()
    content = [
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "text", "text": clip.questions[0].question},
    ]
    own = client(server)
    model = own.models.list().data[0].id
    return own.chat.completions.create(model=model, messages=[{"role": "user", "content": content}], **options)


def seconds_to_error(request) -> float:
    """How long until the request fails. What it raises must be an error of the server or of the connection."""
    begin = time.monotonic()
    with pytest.raises((openai.APIError, httpx.TransportError)):
        request()
    return time.monotonic() - begin


def check_end(server: RayServer, before: Footprint) -> None:
    """The server ends by itself, and takes everything along."""
    assert server.process.wait(timeout=ERROR_WITHIN_S) != 0
    deadline = time.monotonic() + GONE_WITHIN_S
    while before.left():
        assert time.monotonic() < deadline, before.left()
        time.sleep(0.5)
    while (found := actors_and_free_cpus(server.node)) != "actors: [] free: 2.0":
        assert time.monotonic() < deadline + GONE_WITHIN_S, found
        time.sleep(0.5)


@pytest.fixture
def starting(ray_head: RayNode, tmp_path: Path):
    with RayServer(ray_head, tmp_path) as server:
        yield server


@pytest.fixture
def running(starting: RayServer):
    starting.wait_for(lambda: healthy(starting))
    assert len(starting.workers()) == 2
    return starting


def test_killed_at_start(starting):
    starting.wait_for(lambda: len(starting.workers()) == 2 and "Starting to load model" in starting.log())
    before = starting.footprint()
    starting.workers()[1].kill()
    check_end(starting, before)


def test_killed_while_idle(running):
    before = running.footprint()
    running.workers()[1].kill()
    time.sleep(1)
    assert seconds_to_error(lambda: [ask(running, max_completion_tokens=1) for _ in range(100)]) < ERROR_WITHIN_S
    check_end(running, before)


def test_killed_in_prefill(running):
    """One rank is stopped first, so the prefill begins and cannot end."""
    before, worker = running.footprint(), running.workers()[1]
    worker.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(seconds_to_error, lambda: ask(running, max_completion_tokens=4))
        time.sleep(3)
        assert waiting.running()
        worker.kill()
        assert waiting.result() < 3 + ERROR_WITHIN_S
    check_end(running, before)


def test_killed_in_decode(running):
    before, worker = running.footprint(), running.workers()[1]
    stream = ask(running, max_completion_tokens=3500, stream=True, extra_body={"ignore_eos": True})
    for _, _chunk in zip(range(5), stream, strict=False):
        pass
    worker.kill()
    assert seconds_to_error(lambda: list(stream)) < ERROR_WITHIN_S
    check_end(running, before)


def test_nothing_outlives_an_api_server_that_was_killed(running):
    before = running.footprint()
    running.process.kill()
    check_end(running, before)
