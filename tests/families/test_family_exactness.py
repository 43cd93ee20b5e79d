"""Every built-in family against Hugging Face's model, and against stock vLLM where everything is kept.

Tests of other folders run with another family, too: `PRUNE_TEST_FAMILY=qwen2_vl pytest tests/dense`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from chat_templates import THINKING
from dense_cases import (
    ASK_FIRST,
    CONFIGS,
    IMAGE,
    IMAGE_BATCHES,
    LOGPROB_TOLERANCE,
    VIDEO,
    Case,
    Oracle,
    chat,
    check_cold_cached_and_in_chunks,
    check_steps,
    compare,
    image_cases,
    in_turns,
    prompts,
    random_case,
)
from dense_cases import image as picture
from dense_cases import video as clip
from dense_engine import BLOCK_SIZE, RemoteEngine
from inside_cases import image_cases_inside, inside_cases, learned, unusual_cases
from long_cases import check_dense_prefixes_over_several_steps
from oracle import load_model
from oracle.micro_model import FAMILIES as FAMILY_CONFIGS
from oracle.micro_model import load_by_place, micro_selector, micro_selectors, write_micro_model
from pixel_cases import page_cases
from pixel_cases import random_cases as pixel_cases
from runner import IS_V2
from stock import RATE, SIDE, StockAnswer, StockMask, answer_by_stock, masks_of_ours
from transformers import AutoProcessor

from vllm_prune.config import PruneConfig
from vllm_prune.methods import VideoTokens, registry

QUESTION = "What colour is the flash?"
LONG, FEW_BLOCKS = 40, 24
"""Generated tokens, and KV blocks in which the requests that generate so many do not all have room."""
QUERY_FREE = [name for name in registry.names() if getattr(registry.load(name), "relevance", "unused") != "required"]


FAMILIES = {"qwen2_vl": 7, "qwen3_vl": 8, "qwen3_vl_moe": 8, "qwen3_5": 8, "qwen3_5_moe": 8}
"""Beside that of the other folders' tests; each with a seed whose requests have no near ties.

(With 7, noise of 1e-6 on Qwen3-VL's features changes what stage 1 merges of one video, and the towers differ by that.)
"""


DRAFTS: dict[str, Any] = {
    "speculative_config": {
        "method": "ngram",
        "num_speculative_tokens": 3,
        "prompt_lookup_max": 3,
        "prompt_lookup_min": 1,
    }
}
HYBRIDS = ("qwen3_5", "qwen3_5_moe")
"""In which the question chooses before the decoder only."""
SERVED = dict.fromkeys(HYBRIDS, "stage1_only")
"""What a server has, where it is not "default"."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.long if name == "qwen3_5_moe" else ()) for name in FAMILIES],
)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, family: str) -> str:
    return str(write_micro_model(tmp_path_factory.mktemp(family) / "micro", family=family))


def selectors_of(model: str, family: str) -> list[str]:
    return [micro_selector(model)] if family in HYBRIDS else micro_selectors(model)


@pytest.fixture(scope="module")
def started(model: str, family: str) -> Iterator[RemoteEngine]:
    with RemoteEngine(model, SERVED.get(family, "default"), selector=selectors_of(model, family)) as engine:
        yield engine


@pytest.fixture(scope="module")
def oracle(model: str, family: str) -> Iterator[Oracle]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    selectors = load_by_place(selectors_of(model, family))
    served = SERVED.get(family, "default")
    yield Oracle(load_model(model), AutoProcessor.from_pretrained(model), served, selectors)
    torch.set_num_threads(before)


def levels_of(family: str) -> int:
    return len(getattr(FAMILY_CONFIGS[family][0]().vision_config, "deepstack_visual_indexes", ()))


@functools.cache
def cases(family: str) -> list[Case]:
    """36 at random; the configurations that the family can serve take turns."""
    random = np.random.default_rng(FAMILIES[family])
    first = max(levels_of(family) - 1, 0)
    able = [config for config in CONFIGS if first <= min(layers_of(config), default=first)]
    configs = itertools.cycle([config for config in able if can_serve(family, config)])
    return [random_case(random, [next(configs)]) for _ in range(36)]


def can_serve(family: str, config: Any) -> bool:
    """Whether a question need not choose inside a hybrid."""
    asked = PruneConfig.parse(config or {}, base=PruneConfig.parse(SERVED.get(family, "default")))
    return family not in HYBRIDS or not any(part.chooses_inside for part in asked.parts)


def layers_of(config: Any) -> list[int]:
    return config.get("layers", []) if isinstance(config, dict) else []


@pytest.mark.parametrize("start", range(0, 36, 6))
def test_random_requests_equal_the_oracle(engine, oracle, family, start):
    batch = cases(family)[start : start + 6]
    answers = engine.run(prompts(batch))
    compare(batch, answers, oracle)
    for case, answer in zip(batch, answers, strict=True):
        check_steps(answer, oracle, case)
    compare(batch, engine.run(prompts(batch)), oracle)  # from the caches
    engine.call("forget")
    spans = [stop - first for answer in answers for first, stop in oracle.spans(answer.prompt)]
    compare(batch, engine.run(prompts(batch), step_tokens=max([1, *spans]) + 7), oracle)


@pytest.mark.long
@pytest.mark.parametrize(("start", "rows"), [(0, 40), (12, 48), (24, 64)])
def test_dense_prefixes_over_several_steps_equal_the_oracle(divided, engine, oracle, family, start, rows):
    check_dense_prefixes_over_several_steps(engine, oracle, cases(family)[start : start + 12], rows)


@functools.cache
def asking_cases() -> list[Case]:
    """36 at random; the configurations by which the question chooses before the first layer take turns."""
    return in_turns(ASK_FIRST, 36, seed=5)


@pytest.mark.parametrize("start", range(0, 36, 12))
def test_questions_before_the_first_layer_equal_the_oracle(engine, oracle, start):
    """Cold, from the caches, and in steps that end anywhere, inside videos too."""
    batch = asking_cases()[start : start + 12]
    answers = engine.run(prompts(batch))
    compare(batch, answers, oracle)
    for case, answer in zip(batch, answers, strict=True):
        check_steps(answer, oracle, case)
    again = engine.run(prompts(batch))
    compare(batch, again, oracle)
    for answer in again:
        assert answer.num_cached == (len(answer.prompt) - 1) // BLOCK_SIZE * BLOCK_SIZE, (
            "a repeated prompt is a full hit"
        )
    engine.call("forget")
    compare(batch, engine.run(prompts(batch), step_tokens=23), oracle)


@pytest.fixture
def divided(family: str) -> None:
    if family in HYBRIDS:
        pytest.skip("a hybrid refuses choices inside its decoder")


@pytest.mark.parametrize("start", [0, pytest.param(12, marks=pytest.mark.long)])
def test_selectors_inside_equal_the_oracle(divided, engine, oracle, family, start):
    """Also behind the first layer that deepstack allows."""
    batch = inside_cases(family, 24)[start : start + 12]
    check_cold_cached_and_in_chunks(engine, oracle, batch)


@pytest.mark.long
def test_selectors_inside_choose_of_images_and_in_unusual_places(divided, engine, oracle):
    check_cold_cached_and_in_chunks(engine, oracle, image_cases_inside(12))
    engine.call("forget")
    compare(unusual_cases(), engine.run(prompts(unusual_cases())), oracle)


@pytest.mark.parametrize("start", IMAGE_BATCHES)
def test_pruned_images_beside_videos_equal_the_oracle(engine, oracle, family, start):
    batch = [case for case in image_cases()[start : start + 14] if can_serve(family, case.config)]
    assert batch
    check_cold_cached_and_in_chunks(engine, oracle, batch)


def test_plans_on_pixels_equal_an_encoder_that_masks(engine, oracle, family):
    """Without merging what is left, in which nearly still videos have near ties; random requests have it."""
    cases = [dataclasses.replace(case, config=without_merging(case.config)) for case in pixel_cases()]
    cases = [case for case in cases if can_serve(family, case.config)]
    assert cases
    compare(cases, engine.run([case.prompt() for case in cases]), oracle)


def test_pages_whose_equal_cells_are_not_encoded_equal_the_oracle(engine, oracle):
    cases = [case for case in page_cases() if "stage1" not in case.config]
    compare(cases, engine.run([case.prompt() for case in cases]), oracle)


def without_merging(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"stage1": config["stage1"] | {"cluster_ratio": 1.0}}


def ask(config: object) -> Case:
    return Case(chat(VIDEO + QUESTION), (clip(3),), (), config)


def test_every_query_free_method_keeps_what_was_asked_for(engine):
    configs = ["baseline", *({"stage1": None, "method": method, "keep_ratio": 0.25} for method in QUERY_FREE)]
    whole, *answers = engine.run([ask(config).prompt() for config in configs], max_tokens=1)
    assert [answer.error for answer in answers] == [""] * len(QUERY_FREE)
    assert {len(whole.prompt) - len(answer.prompt) for answer in answers} == {48}  # of 64


def test_methods_that_look_into_the_encoder_equal_the_oracle(engine, oracle):
    looking = [ask({"method": method, "stage1": None, "keep_ratio": 0.4}) for method in ("visionzip", "prumerge")]
    compare(looking, engine.run([case.prompt() for case in looking]), oracle)


EVERYTHING = [
    Case(chat("How many shapes?")),
    Case(chat(IMAGE + QUESTION), (), (picture(1),)),
    Case(chat(VIDEO + QUESTION), (clip(2),), (), "baseline"),
    Case(
        chat(f"{VIDEO}{QUESTION}{IMAGE}", "red", f"{VIDEO}How many?"), (clip(2), clip(4, 5)), (picture(3),), "baseline"
    ),
]


@pytest.fixture(scope="module")
def stock(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[StockAnswer], list[StockMask]]:
    return answer_by_stock(model, EVERYTHING, tmp_path_factory.mktemp("stock"))


def test_keeping_everything_is_stock_vllm_in_one_batch(engine, stock):
    answers = engine.run([case.prompt() for case in EVERYTHING])
    for case, answer, expected in zip(EVERYTHING, answers, stock[0], strict=True):
        assert answer.prompt == expected.prompt, case
        assert answer.token_ids == expected.token_ids, case
        assert np.abs(answer.logprobs - expected.logprobs).max() < LOGPROB_TOLERANCE, case


def test_masks_of_vllms_own_pruning_are_ours(stock, family):
    """By vLLM's own path through its model, on its own features."""
    assert {mask.method for mask in stock[1]} == (set() if family == "qwen2_vl" else {"evs", "vidcom2"})
    width = FAMILY_CONFIGS[family][0]().text_config.hidden_size
    for mask in stock[1]:
        assert mask.features.shape[1] == (1 + levels_of(family)) * width
        t, h, w = mask.grid_thw
        tokens = VideoTokens.from_features(mask.features, (t, h // SIDE, w // SIDE))
        assert torch.equal(masks_of_ours(tokens, mask.method, RATE, int(mask.kept.sum()), width), mask.kept)


def test_a_video_of_one_frame_is_served_or_refused_in_a_few_words(engine, family):
    (answer,) = engine.run([Case(chat(VIDEO + QUESTION), (clip(3, 1),)).prompt()])
    if family.startswith("qwen3"):
        assert answer.error.endswith(
            "video 0 has 1 frame(s), and the model's videos need 2; send a single picture as image_url"
        )
    else:
        assert not answer.error


def test_pruning_between_the_levels_of_deepstack_is_refused(engine, family):
    levels = levels_of(family)
    if levels < 2:
        pytest.skip("the family has no levels to prune between")
    asked = [{"method": "attention", "keep_ratio": 0.5, "layers": [levels - 2]}, learned(layers=[levels - 2])]
    for answer in engine.run([ask(config).prompt() for config in asked]):
        assert f"must lie between {levels - 1} and 4" in answer.error
        assert "deepstack" in answer.error


@pytest.fixture
def hybrid(family: str) -> None:
    if family not in HYBRIDS:
        pytest.skip("other families have tests of this in other folders")


@pytest.mark.parametrize("config", ["default", {"method": "attention", "stage1": None, "layers": [2]}, learned()])
def test_a_hybrid_refuses_questions_inside_the_decoder(hybrid, engine, config):
    (answer,) = engine.run([ask(config).prompt()])
    assert "prune.method='attention': the model's decoder is a hybrid" in answer.error


def test_preempted_requests_of_a_hybrid_equal_the_oracle(hybrid, engine, oracle):
    """Their states are gone with their blocks."""
    check_preempted(asking_cases()[:6], engine, oracle)


@pytest.mark.long
@pytest.mark.parametrize("start", range(0, 36, 6))
def test_preempted_random_requests_of_a_hybrid_equal_the_oracle(hybrid, engine, oracle, family, start):
    check_preempted(cases(family)[start : start + 6], engine, oracle)


def check_preempted(batch: list[Case], engine: RemoteEngine, oracle: Oracle) -> None:
    answers = engine.run(prompts(batch), max_tokens=LONG, free_blocks=FEW_BLOCKS)
    assert sum(answer.preemptions for answer in answers) > 0
    compare(batch, answers, oracle, max_tokens=LONG)


@pytest.mark.parametrize("thoughts", [{}, {"enable_thinking": False}], ids=["open", "closed"])
def test_history_without_thoughts_is_found_in_the_cache(hybrid, engine, oracle, thoughts):
    """Two turns by a template that begins a reply with thoughts and drops them from history."""

    def said(messages: list[dict[str, Any]]) -> Case:
        text = oracle.processor.tokenizer.apply_chat_template(
            messages, chat_template=THINKING, tokenize=False, add_generation_prompt=True, **thoughts
        )
        return Case(text, (clip(3),), (), {"method": "question", "stage1": None, "keep_ratio": 0.5})

    asked = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}
    replied = {"role": "assistant", "content": "<think>\nIt may be red, or blue.\n</think>\n\nred"}
    cases = [said([asked]), said([asked, replied, {"role": "user", "content": "How many?"}])]
    (first,) = engine.run([cases[0].prompt()])
    (second,) = engine.run([cases[1].prompt()])
    compare(cases, [first, second], oracle)
    common = next(i for i, pair in enumerate(itertools.zip_longest(first.prompt, second.prompt)) if len({*pair}) > 1)
    assert common // BLOCK_SIZE == (len(first.prompt) - 1) // BLOCK_SIZE, "the state at the last block's end is cached"
    assert (
        second.num_cached == common // BLOCK_SIZE * BLOCK_SIZE > second.prompt.index(oracle.model.config.video_token_id)
    )


@pytest.mark.long
def test_with_vllms_own_kernels_other_tokens_are_further_off_than_rounding(hybrid, model, oracle):
    """In bfloat16, which they take: at equal counts the answers are those of the tokens that were to be kept."""
    configs = [{"method": name, "stage1": None, "keep_ratio": 0.25} for name in ("uniform", "random", "dart")]
    cases = [Case(chat(VIDEO + QUESTION), (clip(seed),), (), config) for seed in range(4) for config in configs]
    with RemoteEngine(model, "stage1_only", dtype="bfloat16", worker_extension_cls="") as engine:
        answers = engine.run([case.prompt() for case in cases], max_tokens=1)
    for case, answer in zip(cases, answers, strict=True):
        assert not answer.error
        errors = []
        for config in configs:
            logits = oracle(dataclasses.replace(case, config=config), 1).logits.double()
            errors.append(np.abs(answer.logprobs - torch.log_softmax(logits, dim=-1).numpy()).max())
        right = errors.pop(configs.index(case.config))
        assert 2 * right < min(errors), (case, right, errors)


def draft_what_is_known(worker: Any, known: Sequence[Sequence[int]]) -> None:
    """From now on the drafter goes on as one of the known sequences does: up to three tokens, some of them wrong."""
    random = np.random.default_rng(0)

    def propose(limit: int, sampled: list[list[int]], lengths: Any, ids: Any, **_: Any) -> list[list[int]]:
        drafts = []
        for row in range(len(sampled)):
            so_far = ids[row, : lengths[row]].tolist()
            follows = next((full[len(so_far) :] for full in known if full[: len(so_far)] == so_far), [])
            draft = follows[: int(random.integers(limit + 1))]
            if draft and random.random() < 0.5:
                draft[int(random.integers(len(draft)))] += 1
            drafts.append(draft if sampled[row] else [])
        return drafts

    worker.worker.model_runner.drafter.propose = propose


@pytest.mark.long
def test_drafts_change_nothing_in_a_hybrid(hybrid, model, oracle):
    """The states go on from the last draft that was accepted, however many a step has had.

    Without cached prefixes: with them vLLM copies states by a kernel that a CPU cannot run.
    """
    if IS_V2:
        pytest.skip("refused on this runner")
    asking = {"method": "question", "stage1": None, "keep_ratio": 0.3}
    batch = [dataclasses.replace(case, config=None) for case in asking_cases()[:6]]
    prompts = [case.prompt() for case in batch]
    expected = Oracle(oracle.model, oracle.processor, asking, oracle.selectors)
    options = {"selector": micro_selector(model), "override": "tighten", **DRAFTS, "enable_prefix_caching": False}
    with RemoteEngine(model, asking, **options) as engine:
        first = engine.run(prompts, max_tokens=LONG)
        compare(batch, first, expected, max_tokens=LONG)
        known = [answer.prompt + answer.token_ids for answer in first]
        engine.call("on_ranks", functools.partial(draft_what_is_known, known=known))
        for options in ({}, {"step_tokens": 23}, {"free_blocks": FEW_BLOCKS}):
            answers = engine.run(prompts, max_tokens=LONG, **options)
            compare(batch, answers, expected, max_tokens=LONG)
            counts = {step.count for answer in answers for step in answer.steps if step.start > len(answer.prompt)}
            assert counts == {1, 2, 3, 4}, "steps have no draft, some and all"
            assert all(len(answer.steps) < LONG for answer in answers), "drafts are accepted"


@pytest.mark.long
def test_two_ranks_equal_the_oracle(model, oracle, family):
    """Tensor parallelism over two processes."""
    batch = cases(family)[:12] + (asking_cases()[:12] if family in HYBRIDS else [])
    options: dict[str, Any] = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    options["selector"] = selectors_of(model, family)
    with RemoteEngine(model, SERVED.get(family, "default"), {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}, **options) as engine:
        engine.call("watch_ranks")
        compare(batch, engine.run([case.prompt() for case in batch]), oracle)
        (first, second) = engine.call("rank_digests")
        assert first == second
        assert (first[0] > 0) == (family not in HYBRIDS)
