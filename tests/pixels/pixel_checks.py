"""What the tests of videos and of images ask of an engine alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from dense_cases import Case, Oracle, check_steps, compare
from dense_engine import Answer, RemoteEngine
from pixel_encoder import read_encoder, watch_encoder


def watched(engine: RemoteEngine, case: Case) -> tuple[Answer, int, list[np.ndarray]]:
    """Answer to one request with empty caches, patches encoded, and rows for the encoder cache."""
    engine.call("forget")
    engine.call("on_ranks", watch_encoder)
    (answer,) = engine.run([case.prompt()])
    ((patches, rows),) = engine.call("on_ranks", read_encoder)
    assert not answer.error, answer.error
    return answer, patches, rows


def check_cold_warm_and_in_chunks(engine: RemoteEngine, oracle: Oracle, cases: Sequence[Case]) -> list[Any]:
    """Asserts that all are the oracle's; the answers of which prompts were prefilled in steps of 150 tokens."""
    prompts = [case.prompt() for case in cases]
    for step_tokens in (None, 150):
        engine.call("forget")
        answers = engine.run(prompts, step_tokens=step_tokens)
        compare(cases, answers, oracle)
        for case, answer in zip(cases, answers, strict=True):
            check_steps(answer, oracle, case)
    again = engine.run(prompts)
    compare(cases, again, oracle)
    assert any(answer.num_cached for answer in again)
    return answers
