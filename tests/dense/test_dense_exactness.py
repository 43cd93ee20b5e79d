"""Invariant 5: answers equal those of the oracle, whatever is in the batch and however vLLM cuts, caches and preempts."""

from __future__ import annotations

import numpy as np
import pytest
from dense_cases import check_steps, compare, random_case

BATCHES = [1, 2, 3, 4, 5, 6, 7, 8]


def batch_of(size: int):
    random = np.random.default_rng(1000 + size)
    return [random_case(random) for _ in range(size)]


@pytest.mark.parametrize("size", BATCHES)
def test_cold_then_warm(eager, oracle, size):
    cases = batch_of(size)
    for _ in range(2):
        answers = eager.run([case.prompt() for case in cases])
        compare(cases, answers, oracle)
        for case, answer in zip(cases, answers, strict=True):
            check_steps(answer, oracle, case)
