"""Invariants 3 and 7: kept tokens keep their positions, and nothing but the request decides about its output.

The reference is independent of this package: the positions that stock vLLM gives the unpruned prompt, less the rows
that `uniform` drops.
"""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
import torch
from serving_cases import CASES, QUESTION, SCRIPT_PRUNE, VIDEO, chat, prompt
from serving_engine import BLOCK_SIZE, Answer, check_positions, prune
from serving_media import video_item

SAME = 1e-4
UNIFORM = SCRIPT_PRUNE
KEPT_SHARE = 0.25
STAGE1 = {"stage1": {"cluster_ratio": 0.5}}


def kept_rows(unpruned: Answer, video_token_id: int) -> np.ndarray:
    """Indices of the unpruned sequence that stay where each video keeps floor(i * N / K), i < K = N / 4."""
    kept: list[int] = []
    first = 0
    for token_id, run in groupby(unpruned.prompt_token_ids):
        length = len(list(run))
        if token_id == video_token_id:
            num_kept = max(1, int(length * KEPT_SHARE + 0.5))
            kept += [first + i * length // num_kept for i in range(num_kept)]
        else:
            kept += range(first, first + length)
        first += length
    return np.array([*kept, *range(first, unpruned.positions.shape[1])])


@pytest.fixture(scope="module")
def expected(stock, shared_engine) -> dict[str, np.ndarray]:
    video_token_id = shared_engine.model.config.video_token_id
    return {name: answer.positions[:, kept_rows(answer, video_token_id)] for name, answer in stock.items()}


def test_the_cases_are_hard_enough(stock):
    """Otherwise the tests below could pass for the wrong reason."""
    assert stock["many positions"].positions.max() > 512
    steps = np.unique(np.diff(np.unique(stock["fractional frame rate"].positions[0])))
    assert len(steps) > 1, "the frame rate gives a whole number of positions to every step"
    for name in ("video, then image", "turns", "prompt ends in a video"):
        answer = stock[name]
        assert answer.positions[0, answer.prompt_len] != answer.prompt_len


def test_all_arrangements_in_one_batch(engine, expected):
    answers = engine.run([prune(case, UNIFORM) for case in CASES.values()])
    for name, answer in zip(CASES, answers, strict=True):
        check_positions(answer.positions, expected[name], name)


@pytest.mark.parametrize(
    ("config", "step_tokens"), [(UNIFORM, 7), (UNIFORM, 32), (STAGE1, 50)], ids=["uniform-7", "uniform-32", "stage1-50"]
)
def test_chunks_change_nothing(engine, expected, config, step_tokens):
    names = ["turns", "two videos, adjacent", "image, then video", "prompt ends in a video", "fractional frame rate"]
    prompts = [prune(CASES[name], config) for name in names]
    whole = engine.run(prompts)
    engine.forget()
    chunked = engine.run(prompts, step_tokens=step_tokens)
    for name, one, many in zip(names, whole, chunked, strict=True):
        assert many.steps > one.steps
        check_positions(many.positions, one.positions, name)
        if config is UNIFORM:
            check_positions(many.positions, expected[name], name)
        np.testing.assert_allclose(many.logprobs, one.logprobs, atol=SAME, err_msg=name)


@pytest.mark.parametrize("config", [UNIFORM, STAGE1], ids=["uniform", "stage1"])
def test_the_batch_changes_nothing(engine, stock, config):
    names = ["turns", "one token", "prompt ends in a video", "fractional frame rate"]
    together = engine.run([prune(CASES[name], config) for name in names])
    for name, answer in zip(names, together, strict=True):
        engine.forget()
        (alone,) = engine.run([prune(CASES[name], config)])
        np.testing.assert_allclose(alone.logprobs, answer.logprobs, atol=SAME, err_msg=name)
        check_positions(answer.positions, alone.positions, name)
        check_some_of(alone, stock[name], name)


def check_some_of(pruned: Answer, unpruned: Answer, message: str) -> None:
    """Whatever was merged: rows are some of the unpruned ones in their order, decoded tokens are where they were."""
    assert (pruned.positions >= 0).all()
    found, rest = [tuple(row) for row in pruned.positions.T], iter([tuple(row) for row in unpruned.positions.T])
    assert all(row in rest for row in found), message
    num_decoded = len(pruned.token_ids) - 1
    np.testing.assert_array_equal(pruned.positions[:, -num_decoded:], unpruned.positions[:, -num_decoded:], message)


def test_configurations_do_not_mix_in_a_batch(engine, stock):
    """Requests for everything, for a quarter and for a half, in one step and so in one call of the encoder."""
    case = CASES["two videos, text between"]
    configs = ["baseline", UNIFORM, STAGE1, {"method": "random", "keep_ratio": 0.25}, "baseline"]
    together = engine.run([prune(case, config) for config in configs])
    np.testing.assert_allclose(together[0].logprobs, stock["two videos, text between"].logprobs, atol=SAME)
    for config, answer in zip(configs, together, strict=True):
        engine.forget()
        (alone,) = engine.run([prune(case, config)])
        np.testing.assert_allclose(alone.logprobs, answer.logprobs, atol=SAME, err_msg=str(config))


_LEAD = "How many shapes? " * 13  # more than one block
_CLIP = video_item(16, 112, 224, seed=31)  # 256 tokens, 64 kept


@pytest.mark.parametrize(
    ("first", "hit_ends"),
    [
        pytest.param(
            prompt(chat(_LEAD + VIDEO + "No?"), videos=[video_item(4, 56, 56, seed=32)]), "before", id="before"
        ),
        pytest.param(prompt(chat(_LEAD + VIDEO + "No?"), videos=[_CLIP]), "inside", id="inside"),
        pytest.param(prompt(chat(f"{_LEAD}{VIDEO}{QUESTION * 12} No?"), videos=[_CLIP]), "after", id="after"),
    ],
)
@pytest.mark.parametrize("config", [UNIFORM, STAGE1], ids=["uniform", "stage1"])
def test_prefix_cache_hits_change_nothing(engine, first, hit_ends, config):
    second = prune(prompt(chat(f"{_LEAD}{VIDEO}{QUESTION * 12} Yes?"), videos=[_CLIP]), config)
    (cold,) = engine.run([second])
    engine.forget()
    engine.run([prune(first, config)], max_tokens=1)
    (warm,) = engine.run([second])
    video_token_id = engine.model.config.video_token_id
    video_starts = cold.prompt_token_ids.index(video_token_id)
    video_ends = video_starts + cold.prompt_token_ids.count(video_token_id)
    hit = warm.num_cached_tokens
    assert hit >= BLOCK_SIZE
    bounds = {"before": (0, video_starts), "inside": (video_starts + 1, video_ends - 1), "after": (video_ends, 10**6)}
    assert bounds[hit_ends][0] <= hit <= bounds[hit_ends][1]
    assert (warm.positions[0] < 0).sum() == hit
    check_positions(warm.positions, cold.positions)
    np.testing.assert_allclose(warm.logprobs, cold.logprobs, atol=SAME)


@pytest.mark.parametrize("config", [UNIFORM, STAGE1], ids=["uniform", "stage1"])
def test_preemption_changes_nothing(engine, config):
    """All running requests lose their blocks in the middle of decoding and are computed again."""
    names = ["turns", "video", "video, then image", "text"]
    prompts = [prune(CASES[name], config) for name in names]
    whole = engine.run(prompts, max_tokens=6)
    engine.forget()
    original, calls = engine.step, []

    def preempting_step():
        calls.append(None)
        if len(calls) in (2, 4):
            assert engine.core.reset_prefix_cache(reset_running_requests=True)
        return original()

    engine.step = preempting_step
    try:
        preempted = engine.run(prompts, max_tokens=6)
    finally:
        del engine.step
    for name, one, other in zip(names, whole, preempted, strict=True):
        assert other.num_computed_rows > one.num_computed_rows, "nothing was computed again"
        check_positions(other.positions, one.positions, name)
        np.testing.assert_allclose(other.logprobs, one.logprobs, atol=SAME, err_msg=name)


def test_integers_above_256_in_bf16(bf16, expected):
    """bf16 holds no odd integer above 256: positions, or the tokens' cells that they follow from, would be off."""
    positions = torch.from_numpy(expected["many positions"][0])
    cells = torch.arange(79) * 315 // 79
    for integers in (positions, cells):
        assert not torch.equal(integers.bfloat16().long(), integers)
    for name, answer in bf16.items():
        check_positions(answer.positions, expected[name], name)
