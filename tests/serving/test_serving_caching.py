"""Invariant 6 for query-free methods: what requests share, and what they must not."""

from __future__ import annotations

import numpy as np
from serving_cases import CASES, IMAGE, QUESTION, VIDEO, ask, chat, prompt
from serving_engine import BLOCK_SIZE, prune
from serving_media import image_item, video_item

HALF = {"stage1": {"cluster_ratio": 0.5}}
QUARTER = {"method": "uniform", "keep_ratio": 0.25}
CLIP = (16, 112, 224)  # 256 tokens


def last_block_start(num_tokens: int) -> int:
    return (num_tokens - 1) // BLOCK_SIZE * BLOCK_SIZE


def full_blocks(num_tokens: int) -> int:
    return num_tokens // BLOCK_SIZE * BLOCK_SIZE


def test_an_identical_request_computes_only_its_last_block(engine):
    case = prune(ask(*CLIP, seed=1), HALF)
    (first,) = engine.run([case])
    assert (first.num_cached_tokens, engine.num_encoded) == (0, 1)
    (second,) = engine.run([case])
    assert second.num_cached_tokens == last_block_start(second.prompt_len)
    assert second.num_cached_tokens >= 128
    assert engine.num_encoded == 1
    assert second.token_ids == first.token_ids
    np.testing.assert_allclose(second.logprobs, first.logprobs, atol=1e-4)


def test_another_question_reuses_the_videos_blocks_and_never_encodes_it_again(engine):
    (first,) = engine.run([prune(ask(*CLIP, seed=1), HALF)])
    (second,) = engine.run([prune(ask(*CLIP, seed=1, question="How many shapes?"), HALF)])
    video_token_id = engine.model.config.video_token_id
    up_to_the_question = len(first.prompt_token_ids) - first.prompt_token_ids[::-1].index(video_token_id)
    assert second.num_cached_tokens == full_blocks(up_to_the_question)
    assert second.num_cached_tokens >= 128
    assert engine.num_encoded == 1


def test_another_question_never_encodes_the_video_again_though_its_blocks_are_gone(engine):
    engine.run([prune(ask(*CLIP, seed=1), HALF)])
    assert engine.llm.reset_prefix_cache()
    engine.run([prune(ask(*CLIP, seed=1, question="How many shapes?"), HALF)])
    assert engine.num_encoded == 1


def test_another_configuration_shares_nothing_of_the_video(engine):
    alone = {}
    for name, config in {"half": HALF, "quarter": QUARTER, "all": "baseline"}.items():
        (alone[name],) = engine.run([prune(ask(*CLIP, seed=1), config)])
        engine.forget()
    engine.num_encoded = 0
    for count, (name, config) in enumerate({"half": HALF, "quarter": QUARTER, "all": "baseline"}.items(), start=1):
        (answer,) = engine.run([prune(ask(*CLIP, seed=1), config)])
        assert answer.num_cached_tokens == 0
        assert engine.num_encoded == count
        np.testing.assert_allclose(answer.logprobs, alone[name].logprobs, atol=1e-4, err_msg=name)


def test_the_same_number_of_tokens_by_another_method_shares_nothing(engine):
    engine.run([prune(ask(*CLIP, seed=1), {"method": "uniform", "keep_ratio": 0.5})])
    (answer,) = engine.run([prune(ask(*CLIP, seed=1), {"method": "random", "keep_ratio": 0.5})])
    assert answer.num_cached_tokens == 0
    (answer,) = engine.run([prune(ask(*CLIP, seed=1), {"method": "random", "keep_ratio": 0.5, "params": {"seed": 1}})])
    assert answer.num_cached_tokens == 0


def test_two_spellings_of_a_configuration_share_everything(engine):
    engine.run([prune(ask(*CLIP, seed=1), "stage1_only")])
    for spelling in ({"preset": "stage1_only"}, {"stage1": {"tau": 0.8}}, '{"enable_stage1": true}'):
        (answer,) = engine.run([prune(ask(*CLIP, seed=1), spelling)])
        assert answer.num_cached_tokens == last_block_start(answer.prompt_len)
    assert engine.num_encoded == 1


def test_a_configuration_is_no_part_of_an_images_identity(engine):
    case = prompt(chat(f"{IMAGE}{QUESTION}"), images=[image_item(224, 224, seed=2)])
    engine.run([prune(case, HALF)])
    (answer,) = engine.run([prune(case, QUARTER)])
    assert engine.num_encoded == 1
    assert answer.num_cached_tokens == last_block_start(answer.prompt_len)


def test_one_video_twice_in_a_prompt_is_encoded_once(engine):
    engine.run([prune(CASES["one video twice"], QUARTER)])
    assert engine.num_encoded == 1


def test_a_second_turn_reuses_the_first(engine):
    clip = video_item(*CLIP, seed=3)
    first = prompt(chat(VIDEO + QUESTION), videos=[clip])
    second = prompt(chat(VIDEO + QUESTION, "red", "How many shapes?"), videos=[clip])
    (one,) = engine.run([prune(first, HALF)], max_tokens=1)
    (two,) = engine.run([prune(second, HALF)])
    assert two.num_cached_tokens == full_blocks(one.prompt_len)
    assert engine.num_encoded == 1
