"""A method that fails on a video fails the requests with that video; everybody else goes on, and nothing is left."""

from __future__ import annotations

import json

import numpy as np
import openai
import pytest
from serving_cases import CASES, ask
from serving_engine import client_id, prune
from serving_media import data_url, mp4
from serving_plugin import METHOD, wayward, write_plugin
from serving_server import text, video

CLIP = ask(16, 112, 112, seed=31)
OTHER = ask(16, 112, 112, seed=32)
SAID = {
    "raise": "ArithmeticError: the moon is in the wrong place",
    "few": "31 tokens of 128 where 32 were asked for",
    "many": "33 tokens of 128 where 32 were asked for",
    "list": "list",
    "lost": "slot: values",
}


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(write_plugin(tmp_path / "site")))


def finish(engine, *prompts):
    """The last output of every prompt, in one batch."""
    ids = engine.add(prompts)
    last = {}
    while engine.llm.llm_engine.has_unfinished_requests():
        last.update({output.request_id: output for output in engine.step() if output.finished})
    return [last[client_id(id)] for id in ids]


def tokens(output):
    return list(output.outputs[0].token_ids)


def failure(output) -> str:
    """Why the request failed; it must have no answer."""
    assert output.outputs[0].finish_reason == "error"
    assert tokens(output) == []
    assert output.prune.failure == output.outputs[0].stop_reason
    return output.outputs[0].stop_reason


@pytest.mark.parametrize("how", SAID)
def test_the_request_fails_with_the_methods_name_and_the_others_go_on(engine, plugin, how):
    good = [prune(OTHER, wayward()), CASES["text"], CASES["image"]]
    alone = [tokens(output) for output in finish(engine, *good)]
    engine.forget()
    bad, *rest = finish(engine, prune(CLIP, wayward(how)), *good)
    message = failure(bad)
    assert METHOD in message
    assert SAID[how] in message
    assert "128 tokens" in message
    assert [tokens(output) for output in rest] == alone


def test_all_requests_with_the_video_fail_and_none_with_another_method(engine, plugin):
    first, second, other = finish(
        engine, prune(CLIP, wayward("raise")), prune(CLIP, wayward("raise")), prune(CLIP, wayward())
    )
    assert failure(first) == failure(second)
    assert len(tokens(other)) == 3


def test_a_request_that_found_the_blocks_in_the_cache_fails_too(engine, plugin, monkeypatch):
    """vLLM counts blocks as found as soon as a step that will fill them is planned."""
    bad = prune(CLIP, wayward("raise"))
    hits = []
    find = engine.scheduler._get_local_prefix_cache_hit
    monkeypatch.setattr(
        engine.scheduler, "_get_local_prefix_cache_hit", lambda request: hits.append(find(request)) or hits[-1]
    )
    first, second = finish(engine, bad, bad)
    assert hits[1][1] > 0, "the second request found no blocks; the test tests nothing"
    assert failure(first) == failure(second)


@pytest.mark.parametrize("step_tokens", [None, 20])
def test_nothing_of_a_failure_stays_in_the_caches(engine, plugin, tmp_path, step_tokens):
    """The method succeeds the second time: what it gets, and what is answered, are as if nothing had been."""
    repaired = tmp_path / "repaired"
    bad = prune(CLIP, wayward("raise", unless=str(repaired)))
    engine.scheduler.max_num_scheduled_tokens = step_tokens or engine.max_step_tokens
    try:
        failure(finish(engine, bad)[0])
        failure(finish(engine, bad)[0])
    finally:
        engine.scheduler.max_num_scheduled_tokens = engine.max_step_tokens
    assert engine.num_encoded == 2
    assert not engine.scheduler.encoder_cache_manager.cached
    repaired.touch()
    again = engine.run([bad])[0]
    engine.forget()
    expected = engine.run([prune(CLIP, wayward())])[0]
    assert engine.num_encoded == 4
    assert again.num_cached_tokens == 0
    np.testing.assert_array_equal(again.logprobs, expected.logprobs)


def test_a_failed_stage_before_the_question(engine, plugin, monkeypatch):
    """The rows of a query-aware video that failed go the way of every other row."""
    from vllm_prune.methods.prunevid import PruneVid

    def assign(self, tokens, budget):
        raise ArithmeticError("no segments today")

    good = prune(OTHER, {"method": "attention"})
    alone = tokens(finish(engine, good)[0])
    engine.forget()
    monkeypatch.setattr(PruneVid, "assign", assign)
    bad, rest = finish(engine, prune(CLIP, "default"), good)
    assert "stage1 failed" in failure(bad)
    assert "no segments today" in failure(bad)
    assert tokens(rest) == alone


FILE = video(data_url(mp4(16, seed=33)))  # 32 tokens
QUESTION = text("Why?")


def test_over_http_it_is_an_error_with_a_message(open_server):
    with pytest.raises(openai.InternalServerError) as failed:
        open_server.ask(FILE, QUESTION, prune=wayward("raise"))
    assert failed.value.status_code == 500
    assert f"method {METHOD!r} failed" in failed.value.message
    assert SAID["raise"] in failed.value.message
    assert "32 tokens" in failed.value.message
    assert open_server.ask(FILE, QUESTION, prune=wayward()).usage.completion_tokens == 3
    assert open_server.metric("vllm_prune:failures_total") >= 1
    open_server.ask(QUESTION)  # the gauge is written at the end of a step
    assert open_server.metric("vllm:kv_cache_usage_perc") == 0


def test_in_a_stream_it_is_an_error_event(open_server):
    with pytest.raises(openai.APIError, match=f"method '{METHOD}' failed"):
        list(open_server.ask(FILE, QUESTION, prune=wayward("few"), stream=True))
    events = open_server.events(FILE, QUESTION, prune=wayward("few"))
    assert [list(json.loads(event)) for event in events[-2:-1]] == [["error"]]
    assert events[-1] == "[DONE]"


def test_several_answers_to_one_prompt(open_server):
    sampled = {"n": 3, "extra_body": {"temperature": 1.0}}
    with pytest.raises(openai.InternalServerError, match=METHOD):
        open_server.ask(FILE, QUESTION, prune=wayward("raise"), **sampled)
    answer = open_server.ask(FILE, QUESTION, prune=wayward(), **sampled)
    assert len(answer.choices) == 3
    assert answer.prune["video_tokens"]["kept"] == 4  # of the 16 that stage 1 leaves
