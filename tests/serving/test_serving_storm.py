"""Invariant 8: after a storm of good, bad and abandoned requests every KV block is free and answers are right."""

from __future__ import annotations

import asyncio
import random
import time

import httpx
import openai
import pytest
from serving_cases import QUESTION
from serving_media import data_url, mp4, png
from serving_server import image, text, video

REQUESTS = 60
CLIPS = [video(data_url(mp4(16 + 8 * i, 112, 112 + 28 * i, seed=20 + i))) for i in range(4)]
PICTURE = image(data_url(png(112, 140, seed=9), "image/png"))
BROKEN = video(data_url(b"no video"))
PRUNE = [None, {"keep_ratio": 0.25}, {"target_token_num": 9}, {"stage1": {"cluster_ratio": 0.1}}]
BAD_PRUNE = [{"keep_ratio": 7}, {"target_token_num": 10_000}, "magic", {"keep_ratio": 0.9}]


def bodies(model: str) -> list[tuple[str, dict]]:
    """What is asked, with what is to become of it: `answer`, `refuse` or `abandon`."""
    choose = random.Random(0)
    made = []
    for i in range(REQUESTS):
        fate = ("answer", "abandon", "answer", "refuse", "abandon")[i % 5]
        content = [choose.choice(CLIPS), text(QUESTION * choose.randint(1, 6))]
        if choose.random() < 0.3:
            content.insert(choose.randint(0, 1), PICTURE)
        if choose.random() < 0.3:
            content.insert(0, choose.choice(CLIPS))
        prune = choose.choice(BAD_PRUNE if fate == "refuse" and i % 2 else PRUNE)
        if fate == "refuse" and not i % 2:
            content[0] = BROKEN
        body = {"model": model, "messages": [{"role": "user", "content": content}], "temperature": 0.0}
        body["max_completion_tokens"] = 200 if fate == "abandon" else choose.randint(1, 12)
        if fate == "abandon":
            body["ignore_eos"] = True
        if prune is not None:
            body["mm_processor_kwargs"] = {"prune": prune}
        made.append((fate, body))
    return made


async def send(client: httpx.AsyncClient, fate: str, body: dict, delay: float) -> str | None:
    """The answer, None for what was refused or abandoned."""
    await asyncio.sleep(delay)
    if fate == "abandon":
        async with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
            assert response.status_code == 200, await response.aread()
            async for _ in response.aiter_lines():
                break  # leaving the block closes the connection
        return None
    response = await client.post("/v1/chat/completions", json=body)
    if fate == "refuse":
        assert 400 <= response.status_code < 500, response.text
        return None
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


async def storm(root: str, asked: list[tuple[str, dict]]) -> list[str | None]:
    delays = random.Random(1)
    limits = httpx.Limits(max_connections=len(asked))
    async with httpx.AsyncClient(base_url=root, timeout=240, limits=limits) as client:
        return await asyncio.gather(*(send(client, *one, delay=delays.uniform(0, 2)) for one in asked))


def wait_until_idle(server) -> None:
    deadline = time.monotonic() + 60
    while server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting"):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_storm_leaves_nothing_behind(server):
    wait_until_idle(server)
    assert server.metric("vllm:kv_cache_usage_perc") == 0
    asked = bodies(server.model)
    said = asyncio.run(storm(server.root, asked))
    wait_until_idle(server)
    # The gauge is written at the end of a step, so one more request brings it up to date.
    server.ask(text(QUESTION), max_tokens=1)
    wait_until_idle(server)
    assert server.metric("vllm:kv_cache_usage_perc") == 0
    for (fate, body), answer in zip(asked, said, strict=True):
        if fate == "answer":
            alone = httpx.post(f"{server.root}/v1/chat/completions", json=body, timeout=120).json()
            assert alone["choices"][0]["message"]["content"] == answer
    assert sum(answer is not None for answer in said) == 24


def test_an_abandoned_request_ends(server):
    """Not only its blocks: the engine stops computing for it."""
    asked = server.ask(CLIPS[0], text(QUESTION), max_tokens=1500, stream=True, extra_body={"ignore_eos": True})
    next(iter(asked))
    asked.close()
    wait_until_idle(server)
    with pytest.raises(openai.APIStatusError):
        server.ask(CLIPS[0], text(QUESTION), prune={"keep_ratio": 7})
