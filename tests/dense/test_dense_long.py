"""Dense prefixes that stretch over several steps: answers are those of one step, whatever happens between the parts."""

from __future__ import annotations

import pytest
from dense_cases import QUESTIONS, VIDEO, Case, Oracle, chat, compare, video
from dense_engine import Answer, RemoteEngine
from test_dense_exactness import batch_of

BATCHES = [(2, 20), (7, 96), (8, 40)]
BATCHES += [pytest.param(*each, marks=pytest.mark.long) for each in ((1, 9), (3, 12), (4, 48), (5, 20), (6, 64))]
"""Sizes of batches, and dense rows that a step computes of one prefix."""
MAX_TOKENS = 9
"""To generate, so that some requests decode between the parts of others."""


def inside(oracle: Oracle, case: Case, answer: Answer) -> int:
    """How many steps of a request end inside a dense span."""
    spans = oracle.spans(answer.prompt, oracle.config_of(case))
    ends = [step.start + step.count for step in answer.steps]
    return sum(start < end < stop for start, stop in spans for end in ends)


@pytest.mark.parametrize(("size", "rows"), BATCHES)
def test_a_dense_prefix_over_several_steps(eager: RemoteEngine, oracle: Oracle, size: int, rows: int) -> None:
    cases = batch_of(size)
    prompts = [case.prompt() for case in cases]
    answers = eager.run(prompts, part_rows=rows, max_tokens=MAX_TOKENS)
    compare(cases, answers, oracle, MAX_TOKENS)
    assert sum(map(inside, [oracle] * size, cases, answers)) >= 1
    assert eager.call("bytes_under_way") == 0
    # Half of them find a context, or all that they are, in the cache; each twice, beside one that is under way.
    eager.call("forget")
    eager.run(prompts[::2])
    both = cases[::-1] + cases
    compare(both, eager.run([case.prompt() for case in both], part_rows=rows), oracle)


@pytest.mark.parametrize("rows", [64, pytest.param(20, marks=pytest.mark.long)])
def test_preempted_between_parts(eager: RemoteEngine, oracle: Oracle, rows: int) -> None:
    cases = batch_of(6)
    answers = eager.run([case.prompt() for case in cases], part_rows=rows, preempts=True)
    compare(cases, answers, oracle)
    assert any(answer.preemptions for answer in answers)
    assert eager.call("bytes_under_way") == 0


def test_aborted_between_parts(eager: RemoteEngine, oracle: Oracle) -> None:
    """Nothing of it is left: neither memory nor blocks (of which the fixture knows), nor anything in a cache."""
    cases = batch_of(5)
    prompts = [case.prompt() for case in cases]
    before, after = eager.call("abort_under_way", prompts, 40)
    assert before > 0 == after
    compare(cases, eager.run(prompts), oracle)


def test_as_many_at_once_as_there_is_memory_for(eager: RemoteEngine, oracle: Oracle) -> None:
    """Each of three has 32 rows of its video and some of text: all at once, or one after the other."""
    cases = [Case(chat(f"{VIDEO}{QUESTIONS[0]}"), (video(seed),)) for seed in range(3)]
    prompts, held = [case.prompt() for case in cases], []
    for dense_tokens in (1000, 70):
        eager.call("forget")
        compare(cases, eager.run(prompts, part_rows=20, dense_tokens=dense_tokens), oracle)
        held.append(eager.call("most_bytes_under_way"))
    assert held[0] > held[1] > 0


def test_log_probabilities_of_a_prompt_that_no_step_holds_are_refused(eager: RemoteEngine, oracle: Oracle) -> None:
    case = Case(chat(f"{VIDEO}{QUESTIONS[2]}"), (video(1),), config={"preset": "stage2_only", "keep_ratio": 0.9})
    assert "prompt_logprobs need" in eager.call("prompt_logprobs", case.prompt(), 40)
    compare([case], eager.run([case.prompt()], part_rows=40), oracle)
