"""Nothing lost, nothing shared that differs, nothing encoded twice."""

from __future__ import annotations

import numpy as np
import pytest
from dense_cases import VIDEO, Case, chat, compare, random_case, video
from dense_engine import BLOCK_SIZE


@pytest.mark.parametrize(("requests", "different"), [(100, 12), pytest.param(200, 24, marks=pytest.mark.long)])
def test_a_storm_leaves_all_blocks_and_the_same_answers(eager, requests, different):
    """Random requests, some aborted, in a cache that forces preemption; the fixture compares the free blocks."""
    random = np.random.default_rng(7)
    cases = [random_case(random) for _ in range(different)]
    order = random.integers(0, len(cases), requests)
    answers = eager.call("storm", [cases[i].prompt() for i in order], seed=7, free_blocks=34)
    assert eager.call("preemptions") > 0
    assert requests / 40 < sum(answer is None for answer in answers) < 0.75 * requests
    alone = [eager.call("alone", case.prompt()) for case in cases]
    for i, answer in zip(order, answers, strict=True):
        if answer is not None:
            assert answer.prompt == alone[i].prompt
            assert answer.token_ids == alone[i].token_ids, cases[i]
            np.testing.assert_allclose(answer.logprobs, alone[i].logprobs, atol=1e-4)


def test_ten_questions_on_one_video_encode_it_once(eager, oracle):
    system = "Answer. " * 20
    shown = video(21, frames=10)
    questions = [Case(chat(VIDEO + f"Question {i}: how many shapes?", system=system), (shown,)) for i in range(10)]
    before_video = len(oracle.processor.tokenizer(questions[0].text.partition(VIDEO)[0]).input_ids)
    chosen = set()
    for case in questions:
        answers = eager.run([case.prompt()])
        compare([case], answers, oracle)
        # Only what comes before the video is shared between questions.
        assert answers[0].num_cached in (0, before_video // BLOCK_SIZE * BLOCK_SIZE)
        chosen.add(tuple(answers[0].chosen[0]["kept"]))
    assert eager.call("num_encoded") == 1
    assert len(chosen) > 1

    for case in questions[:3]:
        follow_up = Case(case.text + "two<|im_end|>\n" + chat("Are you sure about that?"), (shown,))
        (answer,) = eager.run([follow_up.prompt()])
        compare([follow_up], [answer], oracle)
        # Whole blocks of the first turn, its span among them, or all but the block in which it ended.
        first_turn = oracle(case, 4).prompt_len_kept
        shared = first_turn // BLOCK_SIZE * BLOCK_SIZE
        span_end = oracle.spans(answer.prompt)[0][1]
        assert answer.num_cached == (shared if shared >= span_end else before_video // BLOCK_SIZE * BLOCK_SIZE)
    assert eager.call("num_encoded") == 1


def test_the_same_question_in_a_longer_conversation_finds_its_blocks(eager, oracle):
    """Once a follow-up has filled the block in which the first turn ends, every other one hits all of the turn."""
    shown = video(22, frames=10)
    first = chat(VIDEO + "What colour is the flash?")
    follow_ups = [Case(first + "red<|im_end|>\n" + chat(f"{'And then' * 8}, {i}?"), (shown,)) for i in range(2)]
    answers = [eager.run([case.prompt()])[0] for case in follow_ups]
    compare(follow_ups, answers, oracle)
    turn = oracle.spans(answers[0].prompt)[0][1]
    assert [answer.num_cached >= turn for answer in answers] == [False, True]
    assert not answers[1].chosen
    assert eager.call("num_encoded") == 1


def test_another_configuration_shares_nothing_of_the_video(eager, oracle):
    shown = video(23, frames=10)
    text = chat(VIDEO + "What colour is the flash?", "red", "And how many shapes are there in the end, did you say?")
    cases = [
        Case(text, (shown,), config={"method": "attention", "stage1": None, "target_token_num": 40, "params": params})
        for params in ({"text": "max"}, {"text": "mean"}, {"text": "max"})
    ]
    answers = [eager.run([case.prompt()])[0] for case in cases]
    for case, answer in zip(cases, answers, strict=True):
        compare([case], [answer], oracle)
    assert [answer.num_cached > 0 for answer in answers] == [False, False, True]
