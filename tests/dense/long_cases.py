"""Requests whose dense prefixes take several steps, and what has to hold of these."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from dense_cases import CONFIGS, Case, Oracle, compare, in_turns, prompts
from dense_engine import Answer, RemoteEngine

MOST_FRAMES = 80


@functools.cache
def longer_cases() -> list[Case]:
    """36 at random, of videos of up to 80 frames; the configurations take turns."""
    return in_turns(CONFIGS, 36, seed=23, image_share=0.1, most_frames=MOST_FRAMES)


def steps_inside(oracle: Oracle, case: Case, answer: Answer) -> int:
    """How many steps of a request end inside a dense span."""
    spans = oracle.spans(answer.prompt, oracle.config_of(case))
    ends = [step.start + step.count for step in answer.steps]
    return sum(start < end < stop for start, stop in spans for end in ends)


def check_dense_prefixes_over_several_steps(
    engine: RemoteEngine, oracle: Oracle, batch: Sequence[Case], rows: int, max_tokens: int = 9
) -> None:
    """Asserts that all are the oracle's with `rows` dense rows a step, and that nothing of them is held afterwards.

    `max_tokens`: to generate, so that some requests decode between the parts of others.
    """
    answers = engine.run(prompts(batch), part_rows=rows, max_tokens=max_tokens)
    compare(batch, answers, oracle, max_tokens)
    assert any(steps_inside(oracle, case, answer) for case, answer in zip(batch, answers, strict=True))
    assert engine.call("bytes_under_way") == 0
