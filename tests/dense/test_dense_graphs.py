"""Exactness under graphs that replay the whole model: breakable ones, which batch invariance turns on by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import runner
from dense_cases import VIDEO, Case, Oracle, chat, compare, random_case, video
from dense_engine import RemoteEngine
from emulated_graphs import ENVIRONMENT, captured, emulate_graphs
from oracle.micro_model import micro_selector

pytestmark = [
    pytest.mark.skipif(runner.ON_GPU, reason="emulates graphs; tests/gpu has the real ones"),
    pytest.mark.skipif(not runner.IS_V2, reason="emulates the V2 runner's choice of graphs; PRUNE_TEST_RUNNER=v2"),
]
CONFIGS = [
    None,
    "stage2_only",
    {"preset": "default", "layers": [0, 2, 4], "keep_ratio": [0.9, 0.6, 0.5]},
    {"method": "attention", "stage1": None, "keep_ratio": 0.3, "params": {"text": "mean"}},
    "stage1_only",
    "baseline",
    {"method": "question", "stage1": None, "keep_ratio": 0.3},
    {"method": "question", "stage1": None, "keep_ratio": 0.3, "params": {"relevance": "text"}},
]


@pytest.fixture(scope="module")
def replaying(micro: str) -> Iterator[RemoteEngine]:
    """An engine whose steps are captures and replays of them."""
    with RemoteEngine(micro, "default", ENVIRONMENT, selector=micro_selector(micro)) as engine:
        engine.call("on_ranks", emulate_graphs)
        yield engine


def capture(engine: RemoteEngine, num_tokens: int) -> None:
    """Lets a prompt of text be captured, as vLLM captures steps with nothing to choose before it serves."""
    engine.run([{"prompt_token_ids": [100 + i % 50 for i in range(num_tokens)]}], max_tokens=2)
    engine.call("forget")


def replays(engine: RemoteEngine) -> tuple[list[int], int]:
    (found,) = engine.call("on_ranks", captured)
    return found


def check(engine: RemoteEngine, oracle: Oracle, cases: list[Case]) -> None:
    """Answers are the oracle's before and after steps of their sizes were captured."""
    answers = engine.run([case.prompt() for case in cases])
    compare(cases, answers, oracle)
    engine.call("forget")
    sizes: Counter[int] = Counter()
    for step in (step for answer in answers for step in answer.steps):
        sizes[step.number] += step.count
    for size in set(sizes.values()):
        capture(engine, size)
    known, before = replays(engine)
    assert set(sizes.values()) <= set(known)
    compare(cases, engine.run([case.prompt() for case in cases]), oracle)
    assert replays(engine)[1] > before, "their decoding steps at least"
    engine.call("forget")


@pytest.mark.parametrize("config", CONFIGS)
def test_videos_are_pruned_in_steps_whose_size_was_captured(
    replaying: RemoteEngine, oracle: Oracle, config: object
) -> None:
    check(replaying, oracle, [random_case(np.random.default_rng(7), [config])])


def test_batches_of_videos_and_text(replaying: RemoteEngine, oracle: Oracle) -> None:
    cases = [
        Case(chat(VIDEO + "What colour is the flash?"), (video(5),)),
        Case(chat("How many shapes?")),
        Case(chat(VIDEO + "yes or no?"), (video(6, 6),), config="stage2_only"),
    ]
    check(replaying, oracle, cases)
