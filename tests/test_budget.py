"""The one function that says how many tokens stay."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_config import RATIOS, configs

from vllm_prune.budget import count_kept, merged_count, plan_counts
from vllm_prune.config import ATTENTION, DEFAULT_KEEP_RATIO, PRESETS, PruneConfig, Stage1Config

NUM_TOKENS = st.integers(1, 50_000)


@given(configs(), NUM_TOKENS)
def test_counts_go_down_and_never_to_zero(config, num_tokens):
    counts = plan_counts(config, num_tokens)
    chain = [counts.total, counts.stage1, counts.entering, *counts.layers, 1]
    assert chain == sorted(chain, reverse=True)
    assert counts.kept == chain[-2]
    assert counts.total == counts.encoded == num_tokens


@given(configs(), NUM_TOKENS)
def test_layers_are_there_if_the_question_chooses(config, num_tokens):
    counts = plan_counts(config, num_tokens)
    assert len(counts.layers) == (len(config.layers or (None,)) if config.method == ATTENTION else 0)
    if config.method == ATTENTION:
        assert counts.entering == counts.stage1


@given(configs(), NUM_TOKENS)
def test_keeping_everything_keeps_everything(config, num_tokens):
    if config.keeps_everything:
        assert plan_counts(config, num_tokens).kept == num_tokens


@given(NUM_TOKENS, RATIOS)
def test_a_ratio_is_met_to_within_half_a_token(num_tokens, ratio):
    kept = count_kept(num_tokens, ratio)
    assert 1 <= kept <= num_tokens
    assert kept == 1 or abs(kept - num_tokens * ratio) <= 0.5 + 1e-6


@given(NUM_TOKENS, RATIOS, RATIOS)
def test_a_larger_ratio_keeps_no_less(num_tokens, one, other):
    small, large = sorted((one, other))
    assert count_kept(num_tokens, small) <= count_kept(num_tokens, large)


@given(NUM_TOKENS, st.integers(1, 60_000), st.sampled_from(["uniform", ATTENTION, "none"]))
def test_a_target_is_a_cap(num_tokens, target, method):
    config = PruneConfig(stage1=Stage1Config(cluster_ratio=1.0), method=method, target_token_num=target)
    assert plan_counts(config, num_tokens).kept == min(num_tokens, target)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("baseline", (1000, 1000, 1000, ())),
        ("stage1_only", (1000, 500, 500, ())),
        ("stage2_only", (1000, 1000, 1000, (400,))),
        ("default", (1000, 500, 500, (200,))),
        ("conservative", (1000, 800, 800, (480,))),
        ("aggressive", (1000, 300, 300, (90,))),
        ({"method": "uniform"}, (1000, 1000, int(1000 * DEFAULT_KEEP_RATIO), ())),
        ({"method": "uniform", "keep_ratio": 0.25}, (1000, 1000, 250, ())),
        ({"stage1": {"cluster_ratio": 0.5}, "method": "uniform", "keep_ratio": 0.5}, (1000, 500, 250, ())),
        ({"stage1": {"cluster_ratio": 0.5}, "keep_ratio": 0.3}, (1000, 300, 300, ())),
        ({"stage1": True, "target_token_num": 7}, (1000, 7, 7, ())),
        ({"method": ATTENTION, "layers": [1, 3], "keep_ratio": 0.5}, (1000, 1000, 1000, (500, 250))),
        ({"method": ATTENTION, "layers": [1, 3], "keep_ratio": [0.5, 0.2]}, (1000, 1000, 1000, (500, 100))),
        ({"method": ATTENTION, "layers": [1, 3], "target_token_num": [300, 50]}, (1000, 1000, 1000, (300, 50))),
    ],
    ids=str,
)
def test_examples(config, expected):
    counts = plan_counts(PruneConfig.parse(config), 1000)
    assert (counts.total, counts.stage1, counts.entering, counts.layers) == expected


@pytest.mark.parametrize("name", PRESETS)
def test_a_video_of_one_token_keeps_it(name):
    assert plan_counts(PRESETS[name], 1).kept == 1


@given(st.lists(st.integers(0, 300), min_size=1, max_size=12).filter(any), RATIOS, st.none() | st.integers(1, 500))
def test_planned_on_pixels(per_frame, ratio, cap):
    """Still cells are not even encoded; the count follows the content, within the limits."""
    stage1 = Stage1Config(where="processor", cluster_ratio=ratio, max_tokens=cap)
    num_tokens = len(per_frame) * max(per_frame)
    counts = plan_counts(PruneConfig(stage1=stage1), num_tokens, per_frame)
    assert counts.encoded == sum(per_frame)
    assert 1 <= counts.kept <= counts.encoded
    assert counts.kept == min(merged_count(per_frame, ratio), cap or num_tokens)
    assert dataclasses.replace(counts, total=num_tokens) == counts
