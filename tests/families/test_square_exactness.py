"""Families with positions in one dimension against Hugging Face's model, and against stock vLLM.

Their images and frames are squares of one size. Long, but for some cases of one of them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from dense_cases import (
    IMAGE,
    LOGPROB_TOLERANCE,
    VIDEO,
    Case,
    Oracle,
    chat,
    check_cold_cached_and_in_chunks,
    compare,
)
from dense_cases import image as picture
from dense_cases import video as clip
from dense_engine import BLOCK_SIZE, RemoteEngine
from long_cases import check_dense_prefixes_over_several_steps
from oracle import load_model
from oracle.micro_model import micro_selectors, write_micro_model
from square_cases import (
    CELLS,
    FAMILIES,
    IMAGES_ONLY,
    VIDEOS_ONLY,
    asking_cases,
    cases,
    image_cases,
    of_family,
    options_of,
    square_oracle,
    write_square_model,
)
from stock import answer_by_stock
from transformers import AutoProcessor

IN_CI = "llava_onevision"
QUESTION = "What colour is the flash?"


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name == IN_CI else pytest.mark.long) for name in FAMILIES],
)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, family: str) -> str:
    return write_square_model(tmp_path_factory.mktemp(family), family)


@pytest.fixture(scope="module")
def started(model: str, family: str) -> Iterator[RemoteEngine]:
    with RemoteEngine(model, "default", selector=micro_selectors(model), **options_of(family)) as engine:
        yield engine


@pytest.fixture(scope="module")
def oracle(model: str, family: str) -> Iterator[Oracle]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield square_oracle(model, family)
    torch.set_num_threads(before)


def batches(count: int, size: int, in_ci: int = 1) -> list[Any]:
    """Where batches begin; the first `in_ci` are not long."""
    starts = range(0, count, size)
    return [
        start if number < in_ci else pytest.param(start, marks=pytest.mark.long) for number, start in enumerate(starts)
    ]


@pytest.mark.parametrize("start", batches(36, 6))
def test_random_requests_equal_the_oracle(engine, oracle, family, start):
    check_cold_cached_and_in_chunks(engine, oracle, cases(family)[start : start + 6])


@pytest.mark.long
@pytest.mark.parametrize(("start", "rows"), [(0, 40), (12, 48), (24, 64)])
def test_dense_prefixes_over_several_steps_equal_the_oracle(engine, oracle, family, start, rows):
    check_dense_prefixes_over_several_steps(engine, oracle, cases(family)[start : start + 12], rows)


@pytest.mark.parametrize("start", batches(28, 7))
def test_pruned_images_beside_videos_equal_the_oracle(engine, oracle, family, start):
    if family in IMAGES_ONLY or family == VIDEOS_ONLY:
        pytest.skip("the other test has them, or there are none")
    check_cold_cached_and_in_chunks(engine, oracle, image_cases(family)[start : start + 7])


def limit_encoder(tokens: int, worker: Any) -> None:
    """Of a call of the encoder, until `squares_of_calls`."""
    model = worker.model_runner.model
    model.usual, model._encoder_tokens, model.square_calls = model._encoder_tokens, tokens, []
    tower = getattr(model, "vision_tower", None) or model.vision_model

    def count(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        model.square_calls.append(len((*given, *named.values())[0]))

    model.counting = tower.register_forward_pre_hook(count, with_kwargs=True)


def squares_of_calls(worker: Any) -> list[int]:
    model = worker.model_runner.model
    model.counting.remove()
    model._encoder_tokens = model.usual
    return model.square_calls


def test_a_video_longer_than_a_call_of_the_encoder_is_encoded_in_groups_of_frames(engine, oracle, family):
    if family in IMAGES_ONLY:
        pytest.skip("no frames")
    config = {"stage1": None, "method": "dpp", "keep_ratio": 0.4}
    (case,) = of_family(family, [Case(chat(VIDEO + QUESTION), (clip(5, 7),), (), config)])
    engine.call("on_ranks", functools.partial(limit_encoder, 2 * CELLS + 1))
    answers = engine.run([case.prompt()])
    assert engine.call("on_ranks", squares_of_calls) == [[2, 2, 2, 1]]
    compare([case], answers, oracle)


@pytest.mark.long
def test_questions_before_the_first_layer_equal_the_oracle(engine, oracle, family):
    check_cold_cached_and_in_chunks(engine, oracle, asking_cases(family))


def everything(family: str) -> list[Case]:
    shown = [
        Case(chat("How many shapes?")),
        Case(chat(IMAGE + QUESTION), (), (picture(1),), "baseline"),
        Case(chat(f"{IMAGE}{QUESTION}", "red", f"{IMAGE}How many?"), (), (picture(3), picture(4, 28, 28)), "baseline"),
    ]
    if family in IMAGES_ONLY:
        return shown
    if family == VIDEOS_ONLY:
        return [shown[0], Case(chat(VIDEO + QUESTION), (clip(2),), (), "baseline")]
    # As many frames each: stock vLLM's LLaVA-OneVision fails where one batch has videos of different lengths.
    return [
        *shown,
        Case(chat(VIDEO + QUESTION), (clip(2),), (), "baseline"),
        Case(chat(f"{VIDEO}{QUESTION}{IMAGE}", "red", f"{VIDEO}?"), (clip(2), clip(4)), (picture(3),), "baseline"),
    ]


@pytest.mark.long
def test_keeping_everything_is_stock_vllm_in_one_batch(engine, model, family, tmp_path):
    asked = of_family(family, everything(family))
    expected, _ = answer_by_stock(model, asked, tmp_path, **options_of(family))
    for case, answer, stock in zip(asked, engine.run([case.prompt() for case in asked]), expected, strict=True):
        assert answer.prompt == stock.prompt, case
        assert answer.token_ids == stock.token_ids, case
        assert np.abs(answer.logprobs - stock.logprobs).max() < LOGPROB_TOLERANCE, case


@pytest.mark.long
def test_positions_may_be_contiguous_where_no_question_chooses(model, family, oracle):
    """And are kept where one does."""
    numbered = Oracle(oracle.model, oracle.processor, "default", oracle.selectors, contiguous=True)
    options = {"selector": micro_selectors(model), "positions": "contiguous", **options_of(family)}
    with RemoteEngine(model, "default", **options) as engine:
        check_cold_cached_and_in_chunks(engine, numbered, cases(family)[:12])


@pytest.mark.long
def test_two_ranks_equal_the_oracle(model, oracle, family):
    """Tensor parallelism over two processes."""
    batch = cases(family)[:12]
    options: dict[str, Any] = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp", **options_of(family)}
    options["selector"] = micro_selectors(model)
    with RemoteEngine(model, "default", {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}, **options) as engine:
        engine.call("watch_ranks")
        compare(batch, engine.run([case.prompt() for case in batch]), oracle)
        first, second = engine.call("rank_digests")
        assert first == second
        assert first[0] > 0


@pytest.mark.long
def test_a_reply_ends_where_the_decoder_knows_no_more_positions(model, family):
    """Tokens that stay keep their positions, so a pruned prompt leaves no more room than the unpruned one."""
    method = {"method": "uniform", "keep_ratio": 0.25}
    case = Case(chat(IMAGE + QUESTION), (), (picture(1),), {"preset": "baseline", "image": method})
    if family == VIDEOS_ONLY:
        case = Case(chat(VIDEO + QUESTION), (clip(1),), (), method | {"stage1": None})
    (case,) = of_family(family, [case])
    with RemoteEngine(model, "baseline", **options_of(family)) as engine:
        (whole,) = engine.run([dataclasses.replace(case, config="baseline").prompt()], max_tokens=1)
    known = len(whole.prompt) + 5
    text = {"text_config": {"max_position_embeddings": known}}
    with RemoteEngine(model, "baseline", max_model_len=known, hf_overrides=text, **options_of(family)) as engine:
        longer = dataclasses.replace(case, text=case.text.replace(QUESTION, f"Now look: {QUESTION}"))
        answer, refused = engine.run([case.prompt(), longer.prompt()], max_tokens=20)
    assert len(answer.prompt) < len(whole.prompt)
    assert len(answer.token_ids) == 5
    assert f"the model knows {known} positions (max_position_embeddings)" in refused.error


@pytest.mark.long
def test_the_usual_example_on_an_image_of_576_tokens(tmp_path):
    """276 of them go on behind layer 10; `tests/estimate` has what that saves."""
    model = str(write_micro_model(tmp_path / "micro", family="llava_576"))
    example = {"method": "attention", "layers": [10], "target_token_num": 276}
    text = chat(f"{IMAGE}{'Describe what the picture shows. ' * 8}")
    case = Case(text, (), (picture(1, 96, 96),), {"preset": "baseline", "image": example})
    oracle = Oracle(load_model(model), AutoProcessor.from_pretrained(model), "baseline")
    with RemoteEngine(model, "baseline") as engine:
        (answer,) = engine.run([case.prompt()])
        (whole,) = engine.run([dataclasses.replace(case, config="baseline").prompt()])
    compare([case], [answer], oracle)
    assert len(whole.prompt) - len(answer.prompt) == 576 - 276
    assert (
        whole.most_blocks - answer.most_blocks
        == -(-len(whole.prompt) // BLOCK_SIZE) + -len(answer.prompt) // BLOCK_SIZE
    )
