"""The question inside Qwen3.5's decoder, without prefix caching: Gated DeltaNet before the choice sees all rows.

The oracle does the same: what such a layer has seen stays in its state, dropped or not.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_cases import VIDEO, Case, Oracle, chat, check_steps, random_case
from dense_cases import compare as compare_with
from dense_cases import video as clip
from dense_engine import BLOCK_SIZE, RemoteEngine
from oracle import load_model, micro_model
from oracle.micro_model import load_by_place, write_micro_model, write_micro_selector
from transformers import AutoProcessor

LAYERS = ["linear_attention", "full_attention"] * 3
"""Two layers behind which a question can choose, 1 and 3, and layers of both kinds before, between and behind them."""
CONFIGS: tuple[Any, ...] = (
    None,
    {"preset": "default", "layers": [1, 3], "keep_ratio": [0.6, 0.5]},
    "stage2_only",
    {"method": "attention", "stage1": None, "layers": [1], "keep_ratio": None, "target_token_num": 5},
    {"method": "attention", "stage1": None, "keep_ratio": 0.3, "params": {"text": "mean"}},
    "framefusion",
    {"method": "attention", "stage1": None, "layers": [1, 3], "keep_ratio": 0.5, "params": {"text": "last"}},
    {"method": "uniform", "stage1": None, "keep_ratio": 0.3},
)
TOLERANCE = 3e-4
"""Of log-probabilities: over these six layers those of prompts from which nothing is dropped are off by 1e-4, too."""
OPTIONS: dict[str, Any] = {"enable_prefix_caching": False}
LONG = BLOCK_SIZE + 1
"""Generated tokens, for each of which a request needs one more block at least."""


@pytest.fixture(scope="module", params=["qwen3_5", pytest.param("qwen3_5_moe", marks=pytest.mark.long)])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(micro_model.QWEN3_5_TEXT, "layer_types", LAYERS)
        return str(write_micro_model(tmp_path_factory.mktemp(request.param) / "micro", family=request.param))


@pytest.fixture(scope="module")
def selector(model: str) -> str:
    return str(write_micro_selector(Path(model), place=3))


@pytest.fixture(scope="module")
def started(model: str, selector: str) -> Iterator[RemoteEngine]:
    with RemoteEngine(model, "default", selector=[selector], **OPTIONS) as engine:
        yield engine


@pytest.fixture(scope="module")
def oracle(model: str, selector: str) -> Iterator[Oracle]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Oracle(load_model(model), AutoProcessor.from_pretrained(model), "default", load_by_place([selector]))
    torch.set_num_threads(before)


def compare(batch: list[Case], answers: Any, oracle: Oracle, max_tokens: int = 4) -> None:
    compare_with(batch, answers, oracle, max_tokens, tolerance=TOLERANCE)


@functools.cache
def cases() -> list[Case]:
    """36 at random; the configurations take turns."""
    random, configs = np.random.default_rng(18), itertools.cycle(CONFIGS)
    return [random_case(random, [next(configs)]) for _ in range(36)]


@pytest.mark.parametrize("start", [0, *(pytest.param(start, marks=pytest.mark.long) for start in (9, 18, 27))])
def test_random_requests_equal_the_oracle(engine, oracle, start):
    """In one batch, in steps that end anywhere a question allows, and layer by layer in parts."""
    batch = cases()[start : start + 9]
    prompts = [case.prompt() for case in batch]
    answers = engine.run(prompts)
    compare(batch, answers, oracle)
    for case, answer in zip(batch, answers, strict=True):
        check_steps(answer, oracle, case)
    spans = [stop - first for answer in answers for first, stop in oracle.spans(answer.prompt)]
    compare(batch, engine.run(prompts, step_tokens=max([1, *spans]) + 7), oracle)
    compare(batch, engine.run(prompts, dense_rows=64), oracle)
    assert engine.call("most_parts") > 1


@pytest.mark.long
def test_a_selector_inside_the_decoder_chooses(engine, oracle):
    learned = {
        "method": "attention",
        "stage1": None,
        "layers": [3],
        "keep_ratio": 0.3,
        "params": {"relevance": "learned"},
    }
    batch = [ask(learned, seed) for seed in range(6)]
    compare(batch, engine.run([case.prompt() for case in batch]), oracle)


@pytest.mark.long
def test_a_prefix_that_no_step_holds_is_refused(engine, oracle):
    """It takes one step: states go on from row to row."""
    case = ask("stage2_only")
    (answer,) = engine.run([case.prompt()], part_rows=20)
    assert "max_num_batched_tokens=20: what is kept of a video and its question are" in answer.error
    compare([case], engine.run([case.prompt()]), oracle)


@pytest.mark.long
def test_preempted_requests_begin_again(engine, oracle):
    batch = [case for case in cases() if case.videos][:8]
    blocks = 1 + sum(-(-oracle(case, LONG).prompt_len_kept // BLOCK_SIZE) for case in batch)
    answers = engine.run([case.prompt() for case in batch], max_tokens=LONG, free_blocks=blocks)
    assert sum(answer.preemptions for answer in answers) > 0
    compare(batch, answers, oracle, max_tokens=LONG)


@pytest.mark.long
def test_two_ranks_equal_the_oracle(model, selector, oracle):
    ranks: dict[str, Any] = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    bind = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    batch = cases()[:12]
    with RemoteEngine(model, "default", bind, selector=[selector], **OPTIONS, **ranks) as engine:
        engine.call("watch_ranks")
        compare(batch, engine.run([case.prompt() for case in batch]), oracle)
        (first, second) = engine.call("rank_digests")
        assert first == second
        assert first[0] > 0


def ask(config: Any, seed: int = 3) -> Case:
    return Case(chat(VIDEO + "What colour is the flash?"), (clip(seed),), (), config)


@pytest.mark.parametrize("layers", [[0], [1, 2], [4]])
def test_a_pruning_layer_that_keeps_a_state_is_refused(engine, layers):
    own = {"method": "attention", "layers": layers, "keep_ratio": 0.5}
    said = f"layers={layers}: a question chooses behind layers with attention, which in this decoder are 1, 3;"
    video, picture = engine.run([ask(config).prompt() for config in (own, {"preset": "stage1_only", "image": own})])
    assert said in video.error
    assert f"image.{said}" in picture.error


@pytest.mark.long
def test_with_vllms_own_kernels_other_tokens_are_further_off_than_rounding(model, oracle):
    """In bfloat16, which they take: at equal counts the answers are those of the tokens that the question chose."""
    attention = {"method": "attention", "stage1": None, "keep_ratio": 0.25, "layers": [3]}
    others = [{"method": name, "stage1": None, "keep_ratio": 0.25} for name in ("uniform", "random", "dart")]
    batch = [ask(attention, seed) for seed in range(6)]
    with RemoteEngine(model, "default", dtype="bfloat16", worker_extension_cls="", **OPTIONS) as engine:
        answers = engine.run([case.prompt() for case in batch], max_tokens=1)
    for seed, answer in enumerate(answers):
        assert not answer.error
        right, *wrong = [
            _error(answer.logprobs, oracle(ask(config, seed), 1).logits) for config in (attention, *others)
        ]
        assert 2 * right < min(wrong), (seed, right, wrong)


def _error(logprobs: Any, logits: torch.Tensor) -> float:
    return float(np.abs(logprobs - torch.log_softmax(logits.double(), dim=-1).numpy()).max())
