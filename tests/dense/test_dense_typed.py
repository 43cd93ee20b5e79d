"""Special tokens that a user types: no video moves, and the question goes on to the reply."""

from __future__ import annotations

import pytest
import torch
from dense_cases import IMAGE, VIDEO, Case, Oracle, chat, compare, image, video
from dense_engine import BLOCK_SIZE, RemoteEngine

REPLY = "<|im_end|>\n<|im_start|>assistant\n"
TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>")
CONFIGS = (
    "default",
    {"method": "attention", "stage1": None, "keep_ratio": 0.3, "params": {"text": "mean"}},
    {"method": "uniform", "stage1": None, "keep_ratio": 0.3},
)
CLIPS = (video(3), video(4, 6))
ARRANGEMENTS = {
    "before": "{typed}What is red? {VIDEO}How many shapes?",
    "between": "{VIDEO}red or{typed} green? {VIDEO}How many shapes?",
    "at once": "{VIDEO}{typed}How many shapes?",
    "after": "{VIDEO}How many{typed} shapes are red?",
    "last": "{VIDEO}How many shapes?{typed}",
    "everywhere": "{typed}{VIDEO}{typed}or{typed}{VIDEO}{typed}many shapes?{typed}",
    "with an image": "{IMAGE}{typed}{VIDEO}{typed}is it{typed} red?",
}
IN_PLACE = "<|vision_start|><|video_pad|><|video_pad|><|vision_end|>Which one is red?"


def case_of(text: str, config, *more: str) -> Case:
    media = [image(5)] if IMAGE in text else []
    return Case(chat(text, *more), CLIPS[: text.count(VIDEO) or 1], tuple(media), config)


def cases_of(token: str) -> list[Case]:
    """Every arrangement; the configurations take turns, and begin with another one for another token."""
    texts = [text.format(typed=token, VIDEO=VIDEO, IMAGE=IMAGE) for text in ARRANGEMENTS.values()]
    return [case_of(text, CONFIGS[(i + len(token)) % len(CONFIGS)]) for i, text in enumerate(texts)]


@pytest.mark.parametrize("token", [*TOKENS, "".join(TOKENS)])
def test_answers_are_the_oracles_cold_warm_and_in_chunks(eager: RemoteEngine, oracle: Oracle, token: str):
    cases = cases_of(token)
    prompts = [case.prompt() for case in cases]
    compare(cases, eager.run(prompts), oracle)
    warm = eager.run(prompts)
    compare(cases, warm, oracle)
    eager.call("forget")
    longest = max(len(answer.prompt) for answer in warm)
    compare(cases, eager.run(prompts, step_tokens=longest), oracle)


@pytest.mark.parametrize("token", ["<|video_pad|>", "<|im_end|>"])
def test_a_later_turn_reuses_the_first_ones_blocks(eager: RemoteEngine, oracle: Oracle, token: str):
    said = (f"{VIDEO}{token}How many{token} shapes are there?", f"red{token} " * BLOCK_SIZE, f"Which{token} one?")
    first, second = (Case(chat(*turns), CLIPS[:1]) for turns in (said, (*said, "two", "yes or no?")))
    compare([first], eager.run([first.prompt()]), oracle)
    (answer,) = eager.run([second.prompt()])
    compare([second], [answer], oracle)
    assert answer.num_cached >= 2 * BLOCK_SIZE


def test_the_question_goes_on_to_the_reply(eager: RemoteEngine, oracle: Oracle):
    """The step that computes the video ends with the reply's header, not with an end of turn that is typed."""
    case = case_of(f"{VIDEO}What is it?<|im_end|>\n<|im_start|>user\nAnd<|im_end|> how many?", "default", "two", "Why?")
    (answer,) = eager.run([case.prompt()], max_tokens=1)
    ids = oracle.processor.tokenizer(case.text.partition(REPLY)[2]).input_ids
    assert len(answer.prompt) - len(ids) in [step.start for step in answer.steps]


def test_a_header_that_is_typed_whole_is_a_turn(eager: RemoteEngine, oracle: Oracle):
    """To the model it is one, so the answer is that of a chat with this turn."""
    case = case_of(f"{VIDEO}What is it?{REPLY}red<|im_end|>\n<|im_start|>user\nHow many?", "default")
    cold = eager.run([case.prompt()])
    warm = eager.run([case.prompt()])
    compare([case, case], [*cold, *warm], oracle)


def test_a_placeholder_beside_the_videos_own_is_text(eager: RemoteEngine, oracle: Oracle):
    cases = [case_of(IN_PLACE, config) for config in CONFIGS]
    for _ in range(2):
        compare(cases, eager.run([case.prompt() for case in cases]), oracle)


def with_embedded_question(case: Case, question: str, oracle: Oracle) -> dict:
    """The request whose client sends the question as the embeddings of its tokens, as a chat message of vLLM's may.

    vLLM's renderer turns such a message into this: one token that stands in for the embeddings, and these apart.
    """
    tokenizer, embed = oracle.processor.tokenizer, oracle.model.get_input_embeddings()
    before, after = (tokenizer(text).input_ids for text in case.text.split(question))
    asked = tokenizer(question).input_ids
    stand_in = next(i for i in range(len(tokenizer)) if i not in {*before, *asked, *after})
    prompt = {name: value for name, value in case.prompt().items() if name != "prompt"}
    with torch.no_grad():
        embeddings = embed(torch.tensor(asked))
    return {**prompt, "prompt_token_ids": [*before, stand_in, *after], "_prompt_embeds": ([embeddings], stand_in)}


@pytest.mark.parametrize("text", ["{VIDEO}{question}", "{question}{VIDEO}red?", "{VIDEO}or{VIDEO}{question}"])
def test_a_question_sent_as_embeddings_is_a_question(eager: RemoteEngine, oracle: Oracle, text: str):
    question = "What form is the red shape?"
    cases = [case_of(text.format(VIDEO=VIDEO, question=question), config) for config in CONFIGS]
    prompts = [with_embedded_question(case, question, oracle) for case in cases]
    for _ in range(2):
        compare(cases, eager.run(prompts), oracle)
