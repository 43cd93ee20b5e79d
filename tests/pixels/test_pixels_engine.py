"""Stage 1 on pixels in a running engine, beside the oracle: encoder, positions, caches, chunks, other stages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from dense_cases import VIDEO, chat, compare
from pixel_cases import OTHER, PIXELS, QUESTION, ask, busy, random_cases
from pixel_checks import check_cold_warm_and_in_chunks, watched
from pixel_clips import pure_noise, to_cells, video_item

from vllm_prune.budget import plan_counts
from vllm_prune.config import PruneConfig
from vllm_prune.methods.still_cells import plan_runs


@pytest.mark.parametrize(
    "config",
    [
        {"stage1": {**PIXELS, "cluster_ratio": 1.0, "min_tokens": 10**6}},
        {"stage1": {**PIXELS, "cluster_ratio": 1.0, "tau": 0.99}},
    ],
)
def test_keeping_everything_is_stock_bit_for_bit(engine, config):
    """By a floor above the video, and by content."""
    clip = video_item(pure_noise(9, seed=1, width=140))
    stock, all_patches, (stock_rows,) = watched(engine, ask("baseline", clip))
    answer, patches, (rows,) = watched(engine, ask(config, clip))
    assert (patches, answer.prompt) == (all_patches, stock.prompt)
    np.testing.assert_array_equal(rows, stock_rows)
    np.testing.assert_array_equal(answer.logprobs, stock.logprobs)
    assert answer.token_ids == stock.token_ids


def test_only_what_is_new_goes_through_the_encoder(engine):
    clip = busy(1)
    encoded = int(plan_runs(to_cells(clip[0]), 0.8).encoded.sum())
    answer, patches, _ = watched(engine, ask({"stage1": PIXELS}, clip))
    assert patches == 4 * encoded
    assert encoded < 96 / 2
    video_token = max(set(answer.prompt), key=answer.prompt.count)
    per_frame = plan_runs(to_cells(clip[0]), 0.8).per_frame
    counts = plan_counts(PruneConfig.parse({"stage1": PIXELS}), 96, per_frame)
    assert answer.prompt.count(video_token) == counts.kept


def test_ten_plans_equal_the_oracle_cold_warm_and_in_chunks(engine, pixel_oracle):
    answers = check_cold_warm_and_in_chunks(engine, pixel_oracle, random_cases())
    assert any(len(answer.steps) > 4 for answer in answers), "no prompt was prefilled in two steps"


def test_plans_and_features_in_one_batch(engine, pixel_oracle):
    """Requests with stage 1 before, after and without the encoder do not see each other."""
    configs = [
        {"stage1": PIXELS},
        "stage1_only",
        "baseline",
        {"stage1": PIXELS, "method": "attention", "keep_ratio": 0.5},
    ]
    cases = [ask(config, busy(3)) for config in configs]
    compare(cases, engine.run([case.prompt() for case in cases]), pixel_oracle)


@pytest.mark.parametrize("method", [{}, {"method": "attention", "keep_ratio": 0.5}])
def test_a_second_question_encodes_nothing(engine, pixel_oracle, method):
    cases = [ask({"stage1": PIXELS, **method}, busy(4), question=question) for question in (QUESTION, OTHER)]
    for case in cases:
        compare([case], engine.run([case.prompt()]), pixel_oracle)
    assert engine.call("num_encoded") == 1
    assert engine.run([ask({"stage1": {**PIXELS, "tau": 0.7}, **method}, busy(4)).prompt()])[0].num_cached == 0
    assert engine.call("num_encoded") == 2


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
@pytest.mark.parametrize("still_cells", ["runs", "segments"])
def test_videos_of_any_length(engine, frames, still_cells):
    stage1 = {**PIXELS, "still": still_cells, "temporal_segment_ratio": 1.0}
    (answer,) = engine.run([ask({"stage1": stage1}, video_item(pure_noise(frames, seed=5))).prompt()])
    assert not answer.error, answer.error
    video_token = max(set(answer.prompt), key=answer.prompt.count)
    assert answer.prompt.count(video_token) == 8 * -(-frames // 2)


@pytest.mark.parametrize("cap", [1, 5, 20])
def test_a_cap_is_kept_to(engine, cap):
    configs = [{"stage1": {**PIXELS, "max_tokens": cap}}, {"stage1": PIXELS, "target_token_num": cap}]
    answers = engine.run([ask(config, video_item(pure_noise(12, seed=6))).prompt() for config in configs])
    text = len(engine.run([ask({"stage1": {**PIXELS, "max_tokens": 1}}, busy(6)).prompt()])[0].prompt) - 1
    assert [len(answer.prompt) - text for answer in answers] == [cap, cap]


def embeddings(t: int = 3) -> dict[str, torch.Tensor]:
    """A video of t x 4 x 4 tokens, as a client that encodes by itself sends it."""
    return {"video_embeds": torch.randn(16 * t, 192), "video_grid_thw": torch.tensor([[t, 8, 8]])}


def ask_embeddings(config: Any) -> dict[str, Any]:
    data = {"video": embeddings()}
    return {"prompt": chat(VIDEO + QUESTION), "multi_modal_data": data, "mm_processor_kwargs": {"prune": config}}


def test_embeddings_are_refused_or_merged_by_their_features(engine):
    refused, hidden, merged, after = engine.run(
        [
            ask_embeddings({"stage1": PIXELS}),
            ask_embeddings({"method": "visionzip", "keep_ratio": 0.5}),
            ask_embeddings({"stage1": {**PIXELS, "without_pixels": "encoder"}}),
            ask_embeddings({"stage1": {}}),
        ]
    )
    assert "precomputed embeddings" in refused.error
    assert 'stage1.without_pixels="encoder"' in refused.error
    assert "method='visionzip': needs the attention inside the vision encoder, and this request b" in hidden.error
    assert not merged.error, merged.error
    assert merged.prompt == after.prompt
    (answer,) = engine.run([ask({"stage1": PIXELS}, busy(7)).prompt()])
    assert not answer.error
