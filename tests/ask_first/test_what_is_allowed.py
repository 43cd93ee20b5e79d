"""What a dense prefix excludes, with choices before the first layer: LoRA, a KV connector, drafts from the text.

On one engine, with a threshold of long prefills, priorities and the processor cache in shared memory:
every test's answers are those of Hugging Face's model under the same choice.
"""

from __future__ import annotations

import pytest
from adapters import merged
from allowed import EVERYTHING, LEARNED
from dense_cases import VIDEO, Case, Oracle, chat, compare, video
from dense_engine import BLOCK_SIZE

QUESTIONS = ("What colour is the flash?", "How many shapes are there?", "What colour is the ball?")


def ask(question: str, seed: int = 3, frames: int = 10) -> Case:
    return Case(chat(VIDEO + question), (video(seed, frames),))


def whole_blocks(answer) -> int:
    """Tokens of a prompt that a repetition can have from a cache."""
    return (len(answer.prompt) - 1) // BLOCK_SIZE * BLOCK_SIZE


def test_random_requests_equal_the_oracle(engine, oracle, cases):
    """Cold, and from the caches."""
    prompts = [case.prompt() for case in cases]
    compare(cases, engine.run(prompts), oracle)
    again = engine.run(prompts)
    compare(cases, again, oracle)
    assert any(answer.num_cached for answer in again)


def test_no_long_prefill_keeps_others_waiting(engine, oracle):
    """Steps end at the threshold while somebody else is there; alone, vLLM lets a prompt have the whole step."""
    threshold = EVERYTHING["long_prefill_token_threshold"]
    cases = [ask(f"{question} " * 12, seed) for seed in (5, 6) for question in QUESTIONS]
    answers = engine.run([case.prompt() for case in cases])
    compare(cases, answers, oracle)
    ends = [answer.steps[-1].number for answer in answers]
    shared = [
        step
        for i, answer in enumerate(answers)
        for step in answer.steps
        if step.number <= max(ends[:i] + ends[i + 1 :])
    ]
    assert threshold == max(step.count for step in shared)
    engine.call("forget", connector=True)
    (alone,) = engine.run([cases[0].prompt()])
    compare(cases[:1], [alone], oracle)
    assert alone.steps[0].count == len(alone.prompt) > threshold


@pytest.mark.long
def test_requests_that_make_way_equal_the_oracle(engine, oracle):
    cases = [ask(question, seed) for seed in range(4) for question in QUESTIONS]
    answers = engine.run([case.prompt() for case in cases], free_blocks=12, max_tokens=24)
    compare(cases, answers, oracle, max_tokens=24)
    assert sum(answer.preemptions for answer in answers) > 0


def test_drafts_change_nothing(engine, oracle):
    """Answers long enough that the drafter finds what it has seen."""
    cases = [ask(question) for question in QUESTIONS]
    answers = engine.run([case.prompt() for case in cases], max_tokens=40)
    compare(cases, answers, oracle, max_tokens=40)
    assert any(step.count > 1 for answer in answers for step in answer.steps if step.start > len(answer.prompt))


def test_adapters_keep_the_same_tokens_and_answer_as_merged_models(engine, oracle, adapters):
    """Two at once, and from the caches, which tell them apart.

    (vLLM's CPU backend gives an adapter to requests without one in the same batch, pruned or not.)
    """
    case = ask(QUESTIONS[0])
    models = [merged(oracle.model, folder) for folder in adapters]
    oracles = [Oracle(model, oracle.processor, LEARNED, oracle.selectors) for model in models]
    for _ in range(2):
        answers = engine.run([case.prompt()] * 2, adapters=adapters)
        for answer, expected in zip(answers, oracles, strict=True):
            compare([case], [answer], expected)
    assert len({tuple(expected(case, 4).kept[0].tolist()) for expected in [oracle, *oracles]}) == 1


def test_blocks_of_a_connector_answer_for_their_own_question(engine, oracle):
    """vLLM's own cache is emptied: what is not computed came from the connector."""
    cases = [ask(question) for question in QUESTIONS[:2]]
    cold = engine.run([case.prompt() for case in cases[:1]])
    compare(cases[:1], cold, oracle)
    engine.call("forget")
    warm = engine.run([case.prompt() for case in cases])
    compare(cases, warm, oracle)
    assert warm[0].num_cached == whole_blocks(warm[0])
    before_the_video = warm[1].prompt.index(oracle.model.config.video_token_id)
    assert warm[1].num_cached <= before_the_video, "two questions share no block of the video"
    engine.call("forget")
    again = engine.run([case.prompt() for case in cases])
    compare(cases, again, oracle)
    assert [answer.num_cached for answer in again] == [whole_blocks(answer) for answer in again]
