"""Features of every family against a Hugging Face run of the same stages: values, order and places of rows."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from dense_cases import (
    ASK_FIRST,
    CONFIGS,
    IMAGE_CONFIGS,
    IMAGE_SIZES,
    VIDEO,
    Case,
    chat,
    random_case,
    video,
)
from dense_engine import RemoteEngine
from feature_engine import HYBRIDS, LAYERS, SERVED, FeatureEngine, check_cold_warm_and_in_chunks, selectors_of
from inside_cases import INSIDE
from runner import IS_V2

from vllm_prune.config import PruneConfig

QUESTION = "What colour is the flash?"
SEEDS = {"qwen3_vl_moe": 9}
"""Of a family in whose requests of the seed 8 noise of 1e-6 sends a row to another expert."""
BATCHES = [0, *(pytest.param(start, marks=pytest.mark.long) for start in range(8, 40, 8))]


def cases(family: str) -> list[Case]:
    """40 at random with media; all kinds of choices take turns."""
    random = np.random.default_rng(SEEDS.get(family, 8))
    kinds = zip(itertools.cycle(CONFIGS[1:]), itertools.cycle(ASK_FIRST), INSIDE * 3, IMAGE_CONFIGS, strict=False)
    configs = [config for kind in kinds for config in kind if can_serve(family, config)]
    found: list[Case] = []
    for config in itertools.cycle(configs):
        case = random_case(random, [config], 0.3, IMAGE_SIZES)
        if case.videos or (case.images and PruneConfig.parse(config).prunes_images):
            found.append(case)
        if len(found) == 40:
            return found
    raise AssertionError


def can_serve(family: str, config: Any) -> bool:
    parsed = PruneConfig.parse(config)
    if family in HYBRIDS:
        return not any(part.chooses_inside for part in parsed.parts)
    lowest = [part.layers[0] for part in parsed.parts if part.chooses_inside and part.layers]
    return not family.startswith("qwen3") or all(layer >= 2 for layer in lowest)


@pytest.mark.parametrize("start", BATCHES)
def test_features_equal_the_oracle_cold_warm_and_in_chunks(engine, oracle, family, start, record_property):
    batch = cases(family)[start : start + 8]
    record_property("largest error", check_cold_warm_and_in_chunks(engine, oracle, batch))


def test_the_encoder_runs_once_for_all_questions_layers_and_configurations_after_it(engine):
    asked = [Case(chat(VIDEO + words), (video(3),), (), {"preset": "stage1_only"}) for words in (QUESTION, "How many?")]
    for case, layer in itertools.product(asked, LAYERS):
        (features,) = engine.call("encode", [case.prompt()], {"layer": layer})
        assert features.report["videos"][0]["source"] in ("encoded", "encoder_cache")
    assert engine.call("num_encoded") == 1


def test_a_short_video_is_padded_to_the_target(engine, oracle):
    config = {"method": "uniform", "stage1": None, "keep_ratio": None, "target_token_num": 20}
    case = Case(chat(VIDEO + QUESTION), (video(3),), (), config)
    (ragged,) = engine.call("encode", [case.prompt()], {})
    assert ragged.rows.shape[0] == 20
    (padded,) = engine.call("encode", [case.prompt()], {"pad": True, "text": "question"})
    assert np.array_equal(padded.rows[:20], ragged.rows)
    assert padded.described["media"][0]["rows"] == [0, 20]
    assert padded.described["text"]["rows"][0] == 20


def test_seconds_are_those_of_the_frames(engine, family):
    """Qwen3-VL's are between those of the two frames of a step, to a tenth."""
    case = Case(chat(VIDEO + QUESTION), (video(3, fps=8.0),), (), {"method": "uniform", "stage1": None})
    (found,) = engine.call("encode", [case.prompt()], {"layer": 0})
    (medium,) = found.described["media"]
    begin = np.array(medium["cells"])[:, 0] / 4
    late = np.array(medium["seconds"]) - begin
    assert begin.max() == 0.75
    assert np.abs(late).max() < (0.19 if family.startswith("qwen3") else 1e-6)


@pytest.mark.long
@pytest.mark.skipif(not IS_V2, reason="of vLLM's V2 runner")
def test_two_batches_in_flight_change_nothing(model, family, oracle):
    """As vLLM has them of pooling models on request."""
    options = {"selector": selectors_of(model, family), "async_scheduling": True}
    with RemoteEngine(model, SERVED.get(family, "default"), kind=FeatureEngine, **options) as engine:
        check_cold_warm_and_in_chunks(engine, oracle, cases(family)[:16])


def test_chosen_text_positions_are_handed_out_in_the_order_asked_for(engine):
    case = Case(chat(VIDEO + QUESTION), (video(3),))
    (whole,) = engine.call("encode", [case.prompt()], {"text": "all"})
    (chosen,) = engine.call("encode", [case.prompt()], {"text": [-1, 0]})
    places = whole.described["text"]["places"]
    first = whole.described["text"]["rows"][0]
    of = {place: whole.rows[first + i] for i, place in enumerate(places)}
    assert np.array_equal(chosen.rows[-2:], np.stack([of[places[-1]], of[0]]))


BAD = {
    "layer of a model with fewer": ({"layer": 9}, "features.layer=9: the model has 6 decoder layers"),
    "layer not handed out": ({"layer": 3}, "hands out 0, 2, 6; start it with --prune-features 0,2,3,6"),
    "layer of another kind": ({"layer": "last"}, "features.layer='last'"),
    "unknown field": ({"layers": 1}, "features: unknown field 'layers'"),
    "no object": ([1], "features=[1]: must be an object"),
    "text of another kind": ({"text": "answer"}, "features.text='answer': must be none, question, all"),
    "text of a medium": ({"text": [8]}, "index 8 is not one of text"),
    "text beyond the prompt": ({"text": [5000]}, "index 5000 is not one of text"),
    "pad without a target": ({"pad": True}, "give prune.target_token_num for videos"),
    "pad of another kind": ({"pad": 20}, "features.pad=20: must be true or false"),
}


@pytest.mark.parametrize(("asked", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_handed_out_is_refused(engine, asked, message):
    (answer,) = engine.call("encode", [Case(chat(VIDEO + QUESTION), (video(3),)).prompt()], asked)
    assert message in answer.error


def test_features_of_text_alone_are_refused(engine):
    (answer,) = engine.call("encode", [Case(chat(QUESTION)).prompt()], {})
    assert "features: the request has no video" in answer.error


def test_more_tokens_than_the_video_has_are_refused(engine):
    config = {"method": "uniform", "stage1": None, "keep_ratio": None, "target_token_num": 5000}
    (answer,) = engine.call("encode", [Case(chat(VIDEO + QUESTION), (video(3),), (), config).prompt()], {"pad": True})
    assert "target_token_num=5000: the video has 64 tokens" in answer.error
