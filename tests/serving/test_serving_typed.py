"""Invariants 3 and 7 with text that looks like media: a token that a user types moves no video.

The positions of the same cases in one step are compared with stock vLLM's in `test_serving_positions.py`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from serving_cases import CASES, QUESTION, SCRIPT_PRUNE, TYPED, VIDEO, chat, prompt
from serving_engine import BLOCK_SIZE, check_positions, prune
from serving_media import video_item

SAME = 1e-4
STAGE1 = {"stage1": {"cluster_ratio": 0.5}}


@pytest.mark.parametrize("config", [SCRIPT_PRUNE, STAGE1], ids=["uniform", "stage1"])
@pytest.mark.parametrize("step_tokens", [16, 50])
def test_chunks_change_nothing(engine, config, step_tokens):
    prompts = [prune(CASES[name], config) for name in TYPED]
    whole = engine.run(prompts)
    engine.forget()
    chunked = engine.run(prompts, step_tokens=step_tokens)
    for name, one, many in zip(TYPED, whole, chunked, strict=True):
        assert many.steps > one.steps
        assert (one.positions >= 0).all(), name
        check_positions(many.positions, one.positions, name)
        np.testing.assert_allclose(many.logprobs, one.logprobs, atol=SAME, err_msg=name)


@pytest.mark.parametrize("typed", ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|im_end|>"])
@pytest.mark.parametrize("config", [SCRIPT_PRUNE, STAGE1], ids=["uniform", "stage1"])
def test_a_prefix_cache_hit_changes_nothing(engine, config, typed):
    clip = video_item(16, 112, 224, seed=31)
    lead, question = f"{typed}How many shapes? " * 13, f"{typed}{QUESTION}" * 12
    first, second = (
        prune(prompt(chat(f"{lead}{VIDEO}{question} {word}?"), videos=[clip]), config) for word in ("No", "Yes")
    )
    (cold,) = engine.run([second])
    engine.forget()
    engine.run([first], max_tokens=1)
    (warm,) = engine.run([second])
    assert warm.num_cached_tokens >= 2 * BLOCK_SIZE
    assert (cold.positions >= 0).all()
    check_positions(warm.positions, cold.positions)
    np.testing.assert_allclose(warm.logprobs, cold.logprobs, atol=SAME)


@pytest.mark.parametrize("step_tokens", [5, 64])
@pytest.mark.parametrize("name", [*TYPED, "two videos, adjacent", "prompt ends in a video"])
def test_a_runner_that_hands_back_a_copy_gets_the_same_positions(engine, name, step_tokens):
    """The V2 runner writes a prompt's positions down and gives the model what it wrote, without what hung on them."""
    seen = {}
    positions_of, recompute = engine.model.get_mrope_input_positions, engine.model.recompute_mrope_positions

    def begin(tokens, features):
        positions, delta = positions_of(tokens, features)
        seen["copy"] = positions.clone()
        return positions, delta

    def recompute_both(input_ids, multimodal_embeddings, mrope_positions, num_computed_tokens):
        given = (input_ids, multimodal_embeddings)
        if multimodal_embeddings:
            seen["copy"] = recompute(*given, seen["copy"].int().long(), num_computed_tokens)[1]
            engine.model._gathered = []
        result = recompute(*given, mrope_positions, num_computed_tokens)
        seen["tensor"] = result[1]
        return result

    engine.model.get_mrope_input_positions, engine.model.recompute_mrope_positions = begin, recompute_both
    try:
        engine.run([prune(CASES[name], SCRIPT_PRUNE)], max_tokens=1, step_tokens=step_tokens)
    finally:
        del engine.model.get_mrope_input_positions, engine.model.recompute_mrope_positions
    assert torch.equal(seen["copy"], seen["tensor"])
    assert (seen["tensor"] >= 0).all()
