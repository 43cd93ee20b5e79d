"""Questions and videos of unusual lengths and places: each chooses what the oracle chooses."""

from __future__ import annotations

import pytest
from allowed import MOST_TOKENS
from dense_cases import VIDEO, Case, chat, compare, video

QUESTION = "What colour is the flash?"
CASES = {
    "no question": Case(chat(VIDEO), (video(1),)),
    "one frame": Case(chat(VIDEO + QUESTION), (video(1, frames=1),)),
    "two frames": Case(chat(VIDEO + QUESTION), (video(1, frames=2),)),
    "video in the system turn": Case(chat(QUESTION, system=f"Look at this: {VIDEO}"), (video(1),)),
    "two videos, one question": Case(chat(f"{VIDEO}{VIDEO}{QUESTION}"), (video(1), video(2))),
    "text before and after": Case(chat(f"Look: {VIDEO}{QUESTION} Answer in one word."), (video(1),)),
    "text before only": Case(chat(f"{QUESTION}{VIDEO}"), (video(1),)),
    "asked later": Case(chat(VIDEO, "a red ball", QUESTION), (video(1),)),
}


def test_unusual_places_equal_the_oracle(engine, oracle):
    cases = list(CASES.values())
    compare(cases, engine.run([case.prompt() for case in cases]), oracle)
    compare(cases, engine.run([case.prompt() for case in cases]), oracle)


@pytest.mark.long
def test_a_question_of_4000_tokens_equals_the_oracle(engine, oracle):
    case = Case(chat(VIDEO + f"{QUESTION} " * 411), (video(1),))
    (answer,) = engine.run([case.prompt()])
    assert 4000 < len(answer.prompt) <= MOST_TOKENS
    compare([case], [answer], oracle)


def test_a_prompt_longer_than_the_model_takes_is_refused(engine, oracle):
    refused, answered = engine.run(
        [Case(chat(VIDEO + f"{QUESTION} " * 2000), (video(1),)).prompt(), CASES["two frames"].prompt()]
    )
    assert str(MOST_TOKENS) in refused.error
    compare([CASES["two frames"]], [answered], oracle)
