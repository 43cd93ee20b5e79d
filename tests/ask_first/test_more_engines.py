"""Engines of their own: query-free methods, and a cache in eight bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from adapters import merged
from allowed import EVERYTHING, LEARNED
from dense_cases import Oracle, compare, compare_chosen
from dense_engine import RemoteEngine

pytestmark = pytest.mark.long
QUERY_FREE: dict[str, Any] = {"method": "uniform", "stage1": None, "keep_ratio": 0.5}


def test_query_free_methods_allow_the_same(micro, importable, oracle, adapters, cases):
    prompts = [case.prompt() for case in cases]
    plain, adapted = (
        Oracle(model, oracle.processor, QUERY_FREE) for model in (oracle.model, merged(oracle.model, adapters[0]))
    )
    with RemoteEngine(micro, QUERY_FREE, override="tighten", **EVERYTHING) as engine:
        compare(cases, engine.run(prompts), plain)
        engine.call("forget")
        again = engine.run(prompts, step_tokens=23)
        compare(cases, again, plain)
        assert sum(answer.num_cached for answer in again) > 0, "from the connector"
        compare(cases[:4], engine.run(prompts[:4], adapters=[adapters[0]] * 4), adapted)


@pytest.mark.parametrize("dtype", ["fp8_e4m3", "fp8_e5m2"])
def test_a_cache_in_eight_bits_changes_answers_by_its_own_noise(micro, selector, oracle, cases, dtype):
    """What is chosen is the same; log-probabilities are off by no more than twice those of prompts without videos."""
    options: dict[str, Any] = {"override": "tighten", "selector": selector, "kv_cache_dtype": dtype}
    with RemoteEngine(micro, LEARNED, **options) as engine:
        answers = engine.run([case.prompt() for case in cases], max_tokens=1)
    errors: dict[bool, list[float]] = {True: [], False: []}
    for case, answer in zip(cases, answers, strict=True):
        assert not answer.error
        expected = oracle(case, 1)
        compare_chosen([(case, answer, expected)])
        wanted = expected.logits.double().log_softmax(-1).numpy()
        errors[bool(case.videos)].append(float(np.abs(answer.logprobs - wanted).max()))
    assert 0 < max(errors[True]) < 2 * max(errors[False]), errors
