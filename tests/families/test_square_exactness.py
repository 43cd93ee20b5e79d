"""Families with positions in one dimension against Hugging Face's model, and against stock vLLM.

Their images and frames are squares of one size. Long, but for some cases of one of them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_cases import (
    ASK_FIRST,
    CONFIGS,
    IMAGE,
    IMAGE_CONFIGS,
    IMAGE_SIZES,
    LOGPROB_TOLERANCE,
    VIDEO,
    Case,
    Oracle,
    chat,
    check_cold_cached_and_in_chunks,
    compare,
    random_case,
)
from dense_cases import image as picture
from dense_cases import video as clip
from dense_engine import BLOCK_SIZE, RemoteEngine, forgetful
from oracle import load_model
from oracle.internvl_chat import ChatProcessor, chat_text, write_chat_model
from oracle.micro_model import load_by_place, micro_selectors, write_micro_model
from oracle.square_models import SIDE
from stock import answer_by_stock
from transformers import AutoProcessor

from vllm_prune.config import PruneConfig

CHAT = "internvl_chat"
"""The same weights as "internvl", of another class."""
FAMILIES = {"llava_onevision": 8, "llava": 7, "llava_next": 7, "llava_next_video": 7, "internvl": 8, CHAT: 8}
"""Each with a seed whose requests have no near ties."""
IN_CI = "llava_onevision"
IMAGES_ONLY = ("llava", "llava_next")
VIDEOS_ONLY = "llava_next_video"
"""One each, as vLLM serves it."""
TILED_SIZES = ((84, 112), (140, 56), (112, 160))
"""(height, width) in pixels. None fits one tile, which would be the small version of the image once more."""
QUESTION = "What colour is the flash?"


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name == IN_CI else pytest.mark.long) for name in FAMILIES],
)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, family: str) -> str:
    folder = tmp_path_factory.mktemp(family)
    if family != CHAT:
        return str(write_micro_model(folder / "micro", family=family))
    return str(write_chat_model(write_micro_model(folder / "internvl", family="internvl"), folder / "micro"))


@pytest.fixture(scope="module")
def started(model: str, family: str) -> Iterator[RemoteEngine]:
    with RemoteEngine(model, "default", selector=micro_selectors(model), **options_of(family)) as engine:
        yield engine


@pytest.fixture
def engine(started: RemoteEngine) -> Iterator[RemoteEngine]:
    with forgetful(started) as engine:
        yield engine


@pytest.fixture(scope="module")
def oracle(model: str, family: str) -> Iterator[Oracle]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    selectors = load_by_place(micro_selectors(model))
    if family == CHAT:
        original = str(Path(model).parent / "internvl")
        yield Oracle(
            load_model(original), ChatProcessor(AutoProcessor.from_pretrained(original), SIDE), "default", selectors
        )
    else:
        yield Oracle(load_model(model), AutoProcessor.from_pretrained(model), "default", selectors)
    torch.set_num_threads(before)


def options_of(family: str) -> dict[str, Any]:
    """Of its engines."""
    if family == CHAT:
        return {"trust_remote_code": True}
    return {"limit_mm_per_prompt": {"video": 1}} if family == VIDEOS_ONLY else {}


class ChatCase(Case):
    """A request to the class that writes placeholders otherwise."""

    def prompt(self) -> dict[str, Any]:
        return super().prompt() | {"prompt": chat_text(self.text)}


def of_family(family: str, cases: list[Case]) -> list[Case]:
    """The same requests as its engines take them."""
    return [ChatCase(**vars(case)) for case in cases] if family == CHAT else cases


def fits(family: str, case: Case) -> bool:
    """Whether the model takes such media."""
    return family != VIDEOS_ONLY or (len(case.videos) < 2 and not case.images)


def is_served(config: Any) -> bool:
    """Whether no part of a configuration looks at the attention inside the encoder."""
    base = PruneConfig.parse("default")
    asked = base if config is None else PruneConfig.parse(config, base=base)
    return not any(part.needs_encoder_attention for part in asked.parts)


@functools.cache
def cases(family: str) -> list[Case]:
    """36 at random; the configurations that the family can serve take turns."""
    of_images = family in IMAGES_ONLY
    configs = itertools.cycle(filter(is_served, IMAGE_CONFIGS if of_images else CONFIGS))
    random = np.random.default_rng(FAMILIES[family])
    share, sizes = (1.0, sizes_of(family)) if of_images else (0.2, IMAGE_SIZES[:1])
    drawn = (random_case(random, [next(configs)], share, sizes) for _ in itertools.count())
    return of_family(family, list(itertools.islice((case for case in drawn if fits(family, case)), 36)))


def sizes_of(family: str) -> Any:
    """Of its images."""
    return IMAGE_SIZES if family == "llava" else TILED_SIZES


@functools.cache
def image_cases(family: str) -> list[Case]:
    """28 at random; the configurations that prune images take turns."""
    random, configs = np.random.default_rng(11), itertools.cycle(filter(is_served, IMAGE_CONFIGS))
    return of_family(family, [random_case(random, [next(configs)], 0.6, TILED_SIZES) for _ in range(28)])


def batches(count: int, size: int, in_ci: int = 1) -> list[Any]:
    """Where batches begin; the first `in_ci` are not long."""
    starts = range(0, count, size)
    return [
        start if number < in_ci else pytest.param(start, marks=pytest.mark.long) for number, start in enumerate(starts)
    ]


@pytest.mark.parametrize("start", batches(36, 6))
def test_random_requests_equal_the_oracle(engine, oracle, family, start):
    check_cold_cached_and_in_chunks(engine, oracle, cases(family)[start : start + 6])


@pytest.mark.parametrize("start", batches(28, 7))
def test_pruned_images_beside_videos_equal_the_oracle(engine, oracle, family, start):
    if family in IMAGES_ONLY or family == VIDEOS_ONLY:
        pytest.skip("the other test has them, or there are none")
    check_cold_cached_and_in_chunks(engine, oracle, image_cases(family)[start : start + 7])


@functools.cache
def asking_cases(family: str) -> list[Case]:
    """14 at random; the configurations by which the question chooses before the first layer take turns."""
    random, configs = np.random.default_rng(5), itertools.cycle(ASK_FIRST)
    drawn = (random_case(random, [next(configs)], float(family in IMAGES_ONLY)) for _ in itertools.count())
    asked = list(itertools.islice((case for case in drawn if fits(family, case)), 14))
    if family not in IMAGES_ONLY:
        return of_family(family, asked)
    keys = ("method", "keep_ratio", "target_token_num", "params")
    images = [{key: case.config[key] for key in keys if case.config.get(key) is not None} for case in asked]
    return [
        dataclasses.replace(case, config={"preset": "baseline", "image": image})
        for case, image in zip(asked, images, strict=True)
    ]


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
        longer = dataclasses.replace(
            case, text=case.text.replace(QUESTION, f"Now then, look closely at all of it: {QUESTION}")
        )
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
