"""Invariant 4: with nothing to prune, the variant answers as stock vLLM does."""

from __future__ import annotations

import numpy as np
import pytest
from serving_engine import check_positions, prune

SAME = 1e-4


@pytest.mark.parametrize("config", ["baseline", {"method": "uniform", "keep_ratio": 1.0}, {"keep_ratio": 1}])
def test_keeping_everything_is_stock_vllm_in_one_batch(engine, cases, stock, config):
    answers = engine.run([prune(case, config) for case in cases.values()])
    for name, answer in zip(cases, answers, strict=True):
        assert answer.prompt_len == stock[name].prompt_len, name
        assert answer.token_ids == stock[name].token_ids, name
        np.testing.assert_allclose(answer.logprobs, stock[name].logprobs, atol=SAME, err_msg=name)
        check_positions(answer.positions, stock[name].positions, name)


def test_pruning_changes_the_logits(engine, cases, stock):
    """What the test above compares would differ if a token of the video were gone."""
    (answer,) = engine.run([prune(cases["video"], {"method": "uniform", "keep_ratio": 0.5})])
    assert np.abs(answer.logprobs - stock["video"].logprobs).max() > 100 * SAME
