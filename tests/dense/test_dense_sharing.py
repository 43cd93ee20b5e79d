"""Blocks shared between requests: within a step, between steps, between turns, between questions."""

from __future__ import annotations

import pytest
from dense_cases import VIDEO, Case, chat, check_steps, compare, video
from dense_engine import BLOCK_SIZE

SYSTEM = "You are given a video. Answer briefly, and in the language of the question. " * 2
QUESTION = "What colour is the flash?"
TWO_LAYERS = {"preset": "default", "layers": [1, 3], "keep_ratio": 0.5}


def ask(seed: int, question: str = QUESTION, system: str = SYSTEM, config=None) -> Case:
    return Case(chat(VIDEO + question, system=system), (video(seed),), config=config)


def answer_all(engine, oracle, cases: list[Case], **options):
    answers = engine.run([case.prompt() for case in cases], **options)
    compare(cases, answers, oracle)
    for case, answer in zip(cases, answers, strict=True):
        check_steps(answer, oracle, case)
    return answers


@pytest.mark.parametrize("config", [None, TWO_LAYERS], ids=["one layer", "two layers"])
def test_text_shares_blocks_that_a_dense_prefix_computes_in_the_same_step(eager, oracle, config):
    cases = [ask(1, config=config), Case(chat("How many shapes?", system=SYSTEM))]
    answers = answer_all(eager, oracle, cases)
    assert answers[1].num_cached >= BLOCK_SIZE
    assert answers[0].steps[0].number == answers[1].steps[0].number


def test_videos_share_blocks_that_a_dense_prefix_computes_in_the_same_step(eager, oracle):
    answers = answer_all(eager, oracle, [ask(1), ask(2), ask(1, "How many shapes?", config=TWO_LAYERS)])
    assert answers[0].num_cached == 0
    assert all(answer.num_cached >= BLOCK_SIZE for answer in answers[1:])
    assert len({answer.steps[0].number for answer in answers}) == 1


def test_a_follow_up_in_the_step_that_computes_the_span(eager, oracle):
    """The span ends with a block, so that its last block is known to the prefix cache at once."""
    first = aligned_question(oracle)
    follow_up = Case(first.text + "red<|im_end|>\n" + chat("Why?"), first.videos)
    answers = answer_all(eager, oracle, [first, follow_up])
    assert answers[1].num_cached < len(answers[0].prompt)
    assert answer_all(eager, oracle, [follow_up])[0].num_cached >= len(answers[0].prompt)


def aligned_question(oracle, turn: int = 3) -> Case:
    for words in range(BLOCK_SIZE + 1):
        case = ask(turn, QUESTION + " and" * words)
        if oracle(case, 4).prompt_len_kept % BLOCK_SIZE == 0:
            return case
    raise AssertionError("no question ends with a block")


@pytest.mark.parametrize("reply", ["red", "red and green " * 8])
def test_two_turns_asked_again(eager, oracle, reply):
    """A hit inside the second span is cut back, and never to inside the first."""
    text = chat(VIDEO + QUESTION, reply, VIDEO + "How many shapes?", system=SYSTEM)
    case = Case(text, (video(4, frames=6), video(5)))
    assert [answer_all(eager, oracle, [case])[0].num_cached > 0 for _ in range(3)] == [False, True, True]
