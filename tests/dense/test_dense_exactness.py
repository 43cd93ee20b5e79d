"""Invariants 5 and 7: answers equal the oracle's, whatever is in the batch and however vLLM cuts, caches and preempts.

The same 36 random requests, in batches of 1 to 8, go through every way that vLLM has of computing them.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from dense_cases import (
    CONFIGS,
    IMAGE_BATCHES,
    Case,
    Oracle,
    check_cold_cached_and_in_chunks,
    check_steps,
    compare,
    image_cases,
    random_case,
)
from dense_engine import BLOCK_SIZE, Answer, RemoteEngine

SIZES = [1, 2, 3, 4, 5, 6, 7, 8]
PARTS = [(2, 65), (5, 100), (7, 64), (8, 256)]
PARTS += [pytest.param(*each, marks=pytest.mark.long) for each in ((1, 20), (3, 96), (6, 128))]
"""Sizes of batches, and rows of a dense prefix that a layer gets at a time."""
LONG = BLOCK_SIZE + 1
"""Tokens to generate where requests are to outgrow the cache: each needs one more block at least."""


@functools.cache
def all_cases() -> list[Case]:
    """As many as SIZES add up to; the configurations take turns among those with a video."""
    random, configs = np.random.default_rng(1000), itertools.cycle(CONFIGS)
    cases, config = [], next(configs)
    for _ in range(sum(SIZES)):
        cases.append(random_case(random, [config]))
        if cases[-1].videos:
            config = next(configs)
    return cases


def batch_of(size: int) -> list[Case]:
    start = sum(SIZES[: SIZES.index(size)])
    return all_cases()[start : start + size]


def answer_all(engine: RemoteEngine, oracle: Oracle, cases: list[Case], **options) -> list[Answer]:
    answers = engine.run([case.prompt() for case in cases], **options)
    compare(cases, answers, oracle, options.get("max_tokens", 4))
    for case, answer in zip(cases, answers, strict=True):
        check_steps(answer, oracle, case)
    return answers


def longest(oracle: Oracle, answers: list[Answer]) -> int:
    """Tokens that a step has to hold to compute any span of these."""
    return max([1, *(stop - start for answer in answers for start, stop in oracle.spans(answer.prompt))])


def test_the_cases_are_of_all_kinds():
    cases = all_cases()
    assert len(cases) >= 30
    assert any(len(case.videos) > 1 for case in cases)
    assert any(not case.videos for case in cases)
    assert any(case.images and case.videos for case in cases)
    assert any(case.text.count("<|im_start|>user") > 2 for case in cases)
    used = [repr(case.config) for case in cases if case.videos]
    assert {repr(config) for config in CONFIGS} == set(used)


@pytest.mark.parametrize("size", SIZES)
def test_cold_warm_and_in_chunks(eager, oracle, size):
    cases = batch_of(size)
    cold = answer_all(eager, oracle, cases)
    assert all(answer.preemptions == 0 for answer in cold)
    answer_all(eager, oracle, cases)
    eager.call("forget")
    # A budget that leaves the prompts' other parts in pieces, and one request's span waiting for another's.
    answer_all(eager, oracle, cases, step_tokens=longest(oracle, cold) + (1 if size % 2 else 30))


@pytest.mark.parametrize("start", IMAGE_BATCHES)
def test_pruned_images_beside_videos(eager, oracle, start):
    check_cold_cached_and_in_chunks(eager, oracle, image_cases()[start : start + 14])


@pytest.mark.long
def test_pruned_images_on_two_ranks(two_ranks, oracle):
    """Beside videos; both ranks keep the same tokens."""
    two_ranks.call("forget")
    before = two_ranks.call("rank_digests")[0][0]
    check_cold_cached_and_in_chunks(two_ranks, oracle, image_cases()[:14])
    first, second = two_ranks.call("rank_digests")
    assert first == second
    assert first[0] > before


@pytest.mark.parametrize(("size", "rows"), PARTS)
def test_layers_of_a_dense_prefix_in_parts(eager, oracle, size, rows):
    """All that a layer takes of a step is `rows` rows at a time; half of the requests find a cached context."""
    cases = batch_of(size)
    eager.call("forget")
    answer_all(eager, oracle, cases, dense_rows=rows)
    assert eager.call("most_parts") > 1
    eager.run([case.prompt() for case in cases[::2]])
    answer_all(eager, oracle, cases[::-1], dense_rows=rows)


@pytest.mark.parametrize("size", [4, 7, 8])
def test_partly_warm(eager, oracle, size):
    cases = batch_of(size)
    answer_all(eager, oracle, cases[::2])
    answers = answer_all(eager, oracle, cases[::-1])
    assert any(answer.num_cached for answer in answers)


def blocks_for_prompts(cases: list[Case], oracle: Oracle) -> int:
    """All of them and one block more: those begun last make room for new tokens, and begin again."""
    return 1 + sum(-(-oracle(case, LONG).prompt_len_kept // BLOCK_SIZE) for case in cases)


@pytest.mark.parametrize("size", [7, 8])
def test_preempted(eager, oracle, size):
    cases = batch_of(size)
    answers = answer_all(eager, oracle, cases, max_tokens=LONG, free_blocks=blocks_for_prompts(cases, oracle))
    assert sum(answer.preemptions for answer in answers) > 0


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_compiled_with_a_small_cache(compiled, oracle, size):
    cases = batch_of(size)
    assert compiled.call("is_compiled")
    compiled.call("forget")
    free = compiled.call("free_blocks")
    answer_all(compiled, oracle, cases)
    if size == 8:
        few = min(free, blocks_for_prompts(cases, oracle))
        answers = answer_all(compiled, oracle, cases, max_tokens=LONG, free_blocks=few)
        assert sum(answer.preemptions for answer in answers) > 0
    assert compiled.call("free_blocks") == free


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_on_two_ranks(two_ranks, oracle, size):
    cases = batch_of(size)
    two_ranks.call("forget")
    drops = two_ranks.call("rank_digests")[0][0]
    answers = answer_all(two_ranks, oracle, cases)
    first, second = two_ranks.call("rank_digests")
    assert first == second
    assert first[0] > drops or not any(answer.chosen for answer in answers)
