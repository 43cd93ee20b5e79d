"""Whatever is sent as `prune`: an answer or a 4xx in few words, and the next good request is answered."""

from __future__ import annotations

import json
import random
from collections import Counter

import httpx
import pytest
from config_draws import Draw
from serving_cases import QUESTION
from serving_media import data_url, mp4
from serving_server import Server, text, video

CLIP = video(data_url(mp4(16, 112, 112, seed=1)))
LONGEST = 2000  # bytes of a refusal
LONGEST_ANSWER = 20_000
HEADERS = {"content-type": "application/json"}


def body(server: Server, prune: object) -> bytes:
    """JSON with whatever Python's own writer lets through, NaN and half a surrogate pair included."""
    messages = [{"role": "user", "content": [CLIP, text(QUESTION)]}]
    fields = {"model": server.model, "messages": messages, "max_completion_tokens": 1, "temperature": 0.0}
    return json.dumps(fields | {"mm_processor_kwargs": {"prune": prune}}).encode()


def send(server: Server, prune: object) -> httpx.Response:
    url = f"{server.root}/v1/chat/completions"
    return httpx.post(url, content=body(server, prune), headers=HEADERS, timeout=120)


def fuzz(server: Server, seeds: range) -> Counter[int]:
    """The statuses of one drawn request for each seed, which are looked at on the way."""
    statuses: Counter[int] = Counter()
    for seed in seeds:
        prune = Draw(random.Random(seed)).prune()
        response = send(server, prune)
        said = f"seed {seed}: {str(prune)[:500]}: {response.status_code} {response.text[:500]}"
        assert response.status_code == 200 or 400 <= response.status_code < 500, said
        assert len(response.content) < (LONGEST_ANSWER if response.status_code == 200 else LONGEST), said
        assert "Traceback" not in response.text, said
        statuses[response.status_code] += 1
    assert server.ask(CLIP, text(QUESTION), max_tokens=1).usage.completion_tokens == 1
    return statuses


def test_drawn_configurations(open_server):
    statuses = fuzz(open_server, range(60))
    assert min(statuses[200], statuses[400]) >= 10, statuses


@pytest.mark.long
def test_many_drawn_configurations(open_server):
    logged = len(open_server.log())
    statuses = fuzz(open_server, range(1000, 3000))
    assert min(statuses[200], statuses[400]) >= 400, statuses
    longest = max(open_server.log()[logged:].splitlines(), key=len)
    assert len(longest) < LONGEST_ANSWER, longest[:500]


LARGE = {
    "layers": {"method": "attention", "layers": list(range(200_000))},
    "a method's name": {"method": "x" * 10**6},
    "a key": {"x" * 10**6: 1},
    "a preset": "x" * 10**6,
    "JSON text": '{"stage1": {"tau": ' + "[" * 10**6,
    "a parameter": {"stage1": False, "method": "random", "params": {"seed": "x" * 10**6}},
    "parameters": {"stage1": False, "method": "random", "params": {str(i): i for i in range(10**5)}},
    "ratios": {"method": "attention", "layers": list(range(10**5)), "keep_ratio": [0.5] * 10**5},
    "an object": {"stage1": {str(i): i for i in range(10**5)}},
}


@pytest.mark.parametrize("name", LARGE)
def test_nothing_repeats_a_large_value(open_server, name):
    logged = len(open_server.log())
    response = send(open_server, LARGE[name])
    assert response.status_code == 400, response.text[:500]
    assert len(response.content) < LONGEST
    assert len(open_server.log()) - logged < LONGEST_ANSWER


REFUSED = [
    ({"stage1": {"tau": 1}}, "stage1.tau=1.0: must be below 1"),
    *(({"method": name}, f"method='{name}': needs every token") for name in ("evs", "vidcom2", "fastvid", "flashvid")),
    ({"method": "prunevid", "stage1": {"tau": 0.9}}, "method='prunevid': needs every token"),
    ({"method": "dpp", "params": {"rank": 10**30}}, "params.rank=1000000000000000000000000000000"),
]


@pytest.mark.parametrize(("prune", "said"), REFUSED, ids=[str(prune) for prune, _ in REFUSED])
def test_what_no_method_can_do_is_refused_before_it_is_tried(open_server, prune, said):
    response = send(open_server, prune)
    assert (response.status_code, said in response.json()["error"]["message"]) == (400, True), response.text
