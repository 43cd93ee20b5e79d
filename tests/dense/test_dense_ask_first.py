"""The question chooses before the first layer: answers equal the oracle's wherever steps and cached prefixes end."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from dense_cases import (
    ASK_FIRST,
    QUESTIONS,
    VIDEO,
    Case,
    Oracle,
    chat,
    check_steps,
    compare,
    in_turns,
    prompts,
    video,
)
from dense_engine import BLOCK_SIZE, RemoteEngine

LEARNED = {"method": "question", "stage1": None, "keep_ratio": 0.5}


@functools.cache
def all_cases() -> list[Case]:
    return in_turns(ASK_FIRST, 36, seed=77)


def one_video(question: str, frames: int = 10, config: object = LEARNED, before: str = "") -> Case:
    return Case(chat(before + VIDEO + question), (video(5, frames),), (), config)


@pytest.mark.parametrize("start", range(0, 36, 12))
def test_random_requests_equal_the_oracle(eager: RemoteEngine, oracle: Oracle, start: int) -> None:
    """Cold, as full hits, and in steps that end anywhere."""
    batch = all_cases()[start : start + 12]
    answers = eager.run(prompts(batch))
    compare(batch, answers, oracle)
    for case, answer in zip(batch, answers, strict=True):
        check_steps(answer, oracle, case)
    again = eager.run(prompts(batch))
    compare(batch, again, oracle)
    for answer in again:
        assert answer.num_cached == (len(answer.prompt) - 1) // BLOCK_SIZE * BLOCK_SIZE
    eager.call("forget")
    compare(batch, eager.run(prompts(batch), step_tokens=23), oracle)


def test_preempted_requests_equal_the_oracle(compiled: RemoteEngine, oracle: Oracle) -> None:
    """Compiled, with fewer blocks than the requests come to need."""
    compiled.call("forget")
    batch = [one_video(question, frames) for question in QUESTIONS for frames in (8, 10)]
    answers = compiled.run(prompts(batch), max_tokens=BLOCK_SIZE + 1, free_blocks=24)
    assert sum(answer.preemptions for answer in answers) > 0
    compare(batch, answers, oracle, BLOCK_SIZE + 1)


def test_a_hit_may_end_inside_the_video(eager: RemoteEngine, oracle: Oracle) -> None:
    """Text before the video and the first half of its rows are found, the rest is computed."""
    case = one_video("What colour is the flash?", before="You are given a video. ")
    (first,) = eager.run([case.prompt()])
    offset, length = _video_rows(first.prompt)
    assert offset < BLOCK_SIZE < offset + length
    eager.call("keep_blocks", 1)
    (again,) = eager.run([case.prompt()])
    assert again.num_cached == BLOCK_SIZE
    compare([case], [again], oracle)


def _count_unpacked(worker: Any) -> int:
    """How many tokens were unpacked since the last call; counts from now on."""
    from vllm_prune.serving.worker import carrier

    counted = getattr(worker, "unpacked", 0)
    worker.unpacked = 0
    if not hasattr(worker, "read_tags"):
        read_tags = worker.read_tags = carrier.read_tags

        def counting(rows: Any, width: int) -> Any:
            found = read_tags(rows, width)
            worker.unpacked += len(found[0])
            return found

        carrier.read_tags = counting
    return counted


def test_chunks_of_a_video_unpack_it_once(eager: RemoteEngine, oracle: Oracle) -> None:
    """Its rows lie in several steps, which get theirs by the choice of the first."""
    case = one_video("What colour is the flash?")
    eager.call("forget")
    eager.call("on_ranks", _count_unpacked)
    (answer,) = eager.run([case.prompt()], step_tokens=8)
    compare([case], [answer], oracle)
    offset, length = _video_rows(answer.prompt)
    steps = [step for step in answer.steps if step.start < offset + length and step.start + step.count > offset]
    assert len(steps) >= 2
    (unpacked,) = eager.call("on_ranks", _count_unpacked)
    assert unpacked == length * -(-len(answer.chosen[0]["slot"]) // length), "every token, and padding"
    eager.call("forget")


def test_another_question_finds_no_block_of_the_video(eager: RemoteEngine, oracle: Oracle) -> None:
    system = "You are given a video and answer briefly. " * 5
    cases = [Case(chat(VIDEO + question, system=system), (video(5, 10),), (), LEARNED) for question in QUESTIONS[:2]]
    first, second = (eager.run([case.prompt()])[0] for case in cases)
    compare(cases, [first, second], oracle)
    offset, _ = _video_rows(second.prompt)
    assert second.num_cached == offset // BLOCK_SIZE * BLOCK_SIZE > 0


def _video_rows(prompt: list[int]) -> tuple[int, int]:
    pad = max(set(prompt), key=prompt.count)
    return prompt.index(pad), prompt.count(pad)


def test_one_encoding_serves_all_questions(eager: RemoteEngine, oracle: Oracle) -> None:
    batch = [one_video(question) for question in QUESTIONS]
    compare(batch, eager.run(prompts(batch)), oracle)
    assert eager.call("num_encoded") == 1


@pytest.mark.parametrize("question", ["", "Describe the video. " * 90], ids=["none", "long"])
def test_questions_of_any_length(eager: RemoteEngine, oracle: Oracle, question: str) -> None:
    cases = [one_video(question, config=config) for config in ASK_FIRST[:4]]
    cases += [one_video(question, config=ASK_FIRST[2], before="Which colour? ")]
    compare(cases, eager.run(prompts(cases)), oracle)


def test_a_clip_of_one_frame_and_a_video_in_the_system_turn(eager: RemoteEngine, oracle: Oracle) -> None:
    frame = (video(3, 2),)
    cases = [
        Case(chat(VIDEO + "yes or no?"), frame, (), {**LEARNED, "keep_ratio": None, "target_token_num": 1}),
        Case(chat("How many shapes?", system=VIDEO), (video(4),), (), LEARNED),
        Case(chat(f"{VIDEO}and{VIDEO}Which is longer?"), (video(4), video(5, 4)), (), LEARNED),
        Case(chat(f"{VIDEO}How many?", "two", "And the colour?"), (video(4),), (), LEARNED),
    ]
    compare(cases, eager.run(prompts(cases)), oracle)


@pytest.mark.long
def test_two_ranks_equal_the_oracle(two_ranks: RemoteEngine, oracle: Oracle) -> None:
    batch = all_cases()[:18]
    compare(batch, two_ranks.run(prompts(batch)), oracle)
    two_ranks.call("forget")
    compare(batch, two_ranks.run(prompts(batch), step_tokens=23), oracle)
