"""A learned selector chooses inside the decoder: answers equal the oracle's, whatever is in the batch."""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest
import torch
from dense_cases import VIDEO, Case, Oracle, chat, check_cold_cached_and_in_chunks, compare, prompts, video
from dense_engine import RemoteEngine
from inside_cases import INSIDE, INSIDE_IMAGES, image_cases_inside, inside_cases, learned, unusual_cases
from oracle.micro_model import FAMILY

from vllm_prune.methods import VideoTokens
from vllm_prune.methods.question import choose_most_relevant


@functools.cache
def all_cases() -> list[Case]:
    return inside_cases(FAMILY, 24)


@functools.cache
def with_images() -> list[Case]:
    return image_cases_inside(3 * len(INSIDE_IMAGES))


@pytest.mark.parametrize("start", [0, pytest.param(12, marks=pytest.mark.long)])
def test_random_requests_equal_the_oracle(eager: RemoteEngine, oracle: Oracle, start: int) -> None:
    check_cold_cached_and_in_chunks(eager, oracle, all_cases()[start : start + 12])


@pytest.mark.parametrize("start", [0, *(pytest.param(start, marks=pytest.mark.long) for start in (6, 12))])
def test_images_equal_the_oracle(eager: RemoteEngine, oracle: Oracle, start: int) -> None:
    """Alone and beside videos, which have configurations of their own."""
    batch = with_images()[start : start + len(INSIDE_IMAGES)]
    assert any(case.images and case.videos for case in batch)
    check_cold_cached_and_in_chunks(eager, oracle, batch)


def test_unusual_places_equal_the_oracle(eager: RemoteEngine, oracle: Oracle) -> None:
    compare(unusual_cases(), eager.run(prompts(unusual_cases())), oracle)


@pytest.mark.parametrize("question", ["", "Describe the video. " * 40], ids=["none", "long"])
@pytest.mark.parametrize("before", ["", "Which colour? "], ids=["", "before"])
def test_questions_of_any_length(eager: RemoteEngine, oracle: Oracle, question: str, before: str) -> None:
    """Without one, what stands between the video and the reply is read: it has seen the text before the video."""
    cases = [Case(chat(before + VIDEO + question), (video(5, 10),), (), config) for config in INSIDE[:4]]
    compare(cases, eager.run(prompts(cases)), oracle)


def test_the_best_of_each_frame(eager: RemoteEngine) -> None:
    case = Case(
        chat(VIDEO + "How many shapes?"),
        (video(5, 10),),
        (),
        learned({"selector": "topk", "scope": "frame"}, keep_ratio=0.3),
    )
    (answer,) = eager.run([case.prompt()])
    (chosen,) = answer.chosen
    scores = torch.from_numpy(chosen["importance_layer2"])
    t, h, w = chosen["grid"].tolist()
    tokens = VideoTokens.from_features(scores[:, None], (t, h, w))
    kept = choose_most_relevant(tokens, len(chosen["kept"]), scores, "frame")
    assert chosen["kept"].tolist() == kept.tolist()
    assert len(np.unique(kept // (h * w))) == t


def test_layers_where_no_selector_reads(eager: RemoteEngine) -> None:
    """A request that asks for them is refused, and names those that there are."""
    case = Case(chat(VIDEO + "yes or no?"), (video(5, 4),), (), learned(keep_ratio=0.3, layers=[3]))
    (answer,) = eager.run([case.prompt()])
    assert re.search(
        r"reads the output of layer 3, and this server has .*layer 0 .*layer 1 .*layer 2 .*layer 4;", answer.error
    )


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
