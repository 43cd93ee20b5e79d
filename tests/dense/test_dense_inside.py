"""A learned selector chooses inside the decoder: answers equal the oracle's, whatever is in the batch."""

from __future__ import annotations

import functools
import itertools
import re
from typing import Any

import numpy as np
import pytest
import torch
from dense_cases import INSIDE, VIDEO, Case, Oracle, chat, check_steps, compare, random_case, video
from dense_engine import RemoteEngine

from vllm_prune.methods import VideoTokens
from vllm_prune.methods.question import choose_most_relevant

LEARNED = INSIDE[0]
SPAN = 330
"""Tokens of a step that holds any span of these."""


@functools.cache
def all_cases() -> list[Case]:
    """At random; the configurations take turns."""
    random, configs = np.random.default_rng(91), itertools.cycle(INSIDE)
    return [random_case(random, [next(configs)]) for _ in range(24)]


def prompts(cases: list[Case]) -> list[dict[str, Any]]:
    return [case.prompt() for case in cases]


@pytest.mark.parametrize("start", [0, pytest.param(12, marks=pytest.mark.long)])
def test_random_requests_equal_the_oracle(eager: RemoteEngine, oracle: Oracle, start: int) -> None:
    """Cold, warm, and in steps that leave the prompts' other parts in pieces."""
    batch = all_cases()[start : start + 12]
    answers = eager.run(prompts(batch))
    compare(batch, answers, oracle)
    for case, answer in zip(batch, answers, strict=True):
        check_steps(answer, oracle, case)
    compare(batch, eager.run(prompts(batch)), oracle)
    eager.call("forget")
    compare(batch, eager.run(prompts(batch), step_tokens=SPAN), oracle)


@pytest.mark.parametrize("question", ["", "Describe the video. " * 40], ids=["none", "long"])
@pytest.mark.parametrize("before", ["", "Which colour? "], ids=["", "before"])
def test_questions_of_any_length(eager: RemoteEngine, oracle: Oracle, question: str, before: str) -> None:
    """Without one, what stands between the video and the reply is read: it has seen the text before the video."""
    cases = [Case(chat(before + VIDEO + question), (video(5, 10),), (), config) for config in INSIDE[:4]]
    compare(cases, eager.run(prompts(cases)), oracle)


def test_the_best_of_each_frame(eager: RemoteEngine) -> None:
    case = Case(chat(VIDEO + "How many shapes?"), (video(5, 10),), (), _with(selector="topk", scope="frame"))
    (answer,) = eager.run([case.prompt()])
    (chosen,) = answer.chosen
    scores = torch.from_numpy(chosen["importance_layer2"])
    t, h, w = chosen["grid"].tolist()
    tokens = VideoTokens.from_features(scores[:, None], (t, h, w))
    kept = choose_most_relevant(tokens, len(chosen["kept"]), scores, "frame")
    assert chosen["kept"].tolist() == kept.tolist()
    assert len(np.unique(kept // (h * w))) == t


def _with(**params: Any) -> dict[str, Any]:
    return {**LEARNED, "params": {**LEARNED["params"], **params}}


def test_layers_where_no_selector_reads(eager: RemoteEngine) -> None:
    """A request that asks for them is refused, and names those that there are."""
    case = Case(chat(VIDEO + "yes or no?"), (video(5, 4),), (), {**LEARNED, "layers": [3]})
    (answer,) = eager.run([case.prompt()])
    assert re.search(r"reads the output of layer 3, and this server has .*layer 0 .*layer 2 .*layer 4;", answer.error)


@pytest.mark.slow
def test_compiled(compiled: RemoteEngine, oracle: Oracle) -> None:
    compiled.call("forget")
    batch = all_cases()[:8]
    compare(batch, compiled.run(prompts(batch)), oracle)


@pytest.mark.long
def test_two_ranks_equal_the_oracle(two_ranks: RemoteEngine, oracle: Oracle) -> None:
    batch = all_cases()[:12]
    two_ranks.call("forget")
    compare(batch, two_ranks.run(prompts(batch)), oracle)
    first, second = two_ranks.call("rank_digests")
    assert first == second
