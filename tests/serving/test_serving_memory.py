"""A worker's memory over thousands of distinct videos and configurations, with traces written of all of them."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from serving_media import data_url, mp4
from serving_server import OPTIONS, Server, text, video

CLIPS = int(os.environ.get("VLLM_PRUNE_TEST_CLIPS", "5000"))
SETTLED = CLIPS // 5
"""Clips after which every cache is full."""
STEP = CLIPS // 50
GROWTH = 0.02


def worker_of(server: Server) -> psutil.Process:
    """The engine core, which with one device is the worker too."""
    children = psutil.Process(server._process.pid).children(recursive=True)
    (core,) = [child for child in children if "EngineCore" in " ".join(child.cmdline())]
    return core


def ask(server: Server, number: int) -> None:
    """A clip and a configuration that no other request has; every other one lets its question choose."""
    clip = video(data_url(mp4(4, 56, 56, seed=number, fps=2.0)))
    prune = {"keep_ratio": random.Random(number).uniform(0.3, 0.9)}
    prune["method"] = "attention" if number % 2 else "uniform"
    server.ask(clip, text("What?"), prune=prune, max_tokens=1)


@pytest.mark.long
def test_the_worker_does_not_grow(model, tmp_path):
    # The caches of processed videos are vLLM's, have a limit of gigabytes, and would not be full before the end.
    options = (*OPTIONS, "--mm-processor-cache-gb", "0.02", "--prune-trace", str(tmp_path / "traces"))
    sizes = {}
    with Server(model, tmp_path, prune='{"stage1": true}', override="any", options=options) as server:
        worker = worker_of(server)
        with ThreadPoolExecutor(8) as pool:
            for first in range(0, CLIPS, STEP):
                list(pool.map(lambda number: ask(server, number), range(first, first + STEP)))
                sizes[first + STEP] = worker.memory_info().rss
    for count, size in sizes.items():
        print(f"{count:6d} clips: {size / 2**20:8.1f} MiB")
    settled, largest = sizes[SETTLED], max(size for count, size in sizes.items() if count >= SETTLED)
    assert largest <= settled * (1 + GROWTH), sizes
