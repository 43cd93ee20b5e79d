"""A bad request gets an error that says what to change; the engine goes on."""

from __future__ import annotations

import pytest
from dense_cases import VIDEO, Case, chat, compare, video
from dense_engine import DENSE_TOKENS

from vllm_prune.budget import TokenCounts
from vllm_prune.config import PruneConfig, PruneConfigError
from vllm_prune.override import ServerSettings
from vllm_prune.serving.api.prompt_facts import PromptMedium
from vllm_prune.serving.api.span_check import check_spans
from vllm_prune.serving.wire.settings import StepLimits
from vllm_prune.spans import TurnFormat

ATTENTION = {"method": "attention", "stage1": None}
QUESTION = chat(VIDEO + "What colour is the flash?")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": [1.5]}, "layers=1.5: must be an integer"),
        ({"layers": [True]}, "layers=True: must be an integer"),
        ({"layers": ["2"]}, "layers='2': must be an integer"),
        ({"layers": [-1]}, "layers=-1: must be 0 or more"),
        ({"layers": []}, "must be one or more indices, or shares of the depth, in increasing order"),
        ({"layers": [3, 1]}, "in increasing order"),
        ({"layers": [1, 1]}, "in increasing order"),
        ({"layers": [1, 3], "keep_ratio": [0.5]}, "one value for each of layers"),
        ({"layers": [1, 3], "target_token_num": [5, 9]}, "must not grow from layer to layer"),
        ({"keep_ratio": 0.5, "target_token_num": 10}, "give one of the two"),
        ({"keep_ratio": 0}, "above 0 and at most 1"),
        ({"target_token_num": 0}, "must be 1 or more"),
        ({"params": {"text": "sum"}}, "text"),
        ({"params": {"words": "max"}}, "unknown key 'words'"),
    ],
)
def test_configurations_that_cannot_be(eager, changes, message):
    (answer,) = eager.run([Case(QUESTION, (video(1),), config={**ATTENTION, **changes}).prompt()])
    assert message in answer.error


@pytest.mark.parametrize("layer", [5, 99])
def test_layers_that_the_model_does_not_have(eager, layer):
    (answer,) = eager.run([Case(QUESTION, (video(1),), config={**ATTENTION, "layers": [layer]}).prompt()])
    assert f"layers=[{layer}]: must lie between 0 and 4 for a decoder of 6 layers" in answer.error


def test_the_last_layer_that_can_be(eager, oracle):
    case = Case(QUESTION, (video(1),), config={**ATTENTION, "layers": [4], "keep_ratio": 0.5})
    compare([case], eager.run([case.prompt()]), oracle)


def test_a_prompt_that_ends_in_a_video(eager, oracle):
    text = "What colour is the flash?<|vision_start|><|video_pad|>"
    (refused,) = eager.run([Case(text, (video(1),)).prompt()])
    assert "no text can choose its tokens" in refused.error
    assert "put the question after the video" in refused.error
    query_free = Case(text, (video(1),), config={"method": "uniform", "stage1": None, "keep_ratio": 0.5})
    compare([query_free], eager.run([query_free.prompt()]), oracle)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(chat("What colour is the flash?" + VIDEO), id="question before, the template's text after"),
        pytest.param(chat("What is this?" + VIDEO + "Be brief."), id="text before and after"),
        pytest.param(chat("How many shapes?", system="You see: " + VIDEO + " Answer."), id="in the system turn"),
        pytest.param(VIDEO + "yes or no?", id="without a template"),
    ],
)
def test_unusual_places(eager, oracle, text):
    case = Case(text, (video(2),))
    compare([case], eager.run([case.prompt()]), oracle)


def test_two_videos_before_one_question(eager, oracle):
    text = chat(VIDEO + VIDEO + "Which one is longer?")
    for videos in ((video(1), video(2, frames=4)), (video(1), video(1))):
        case = Case(text, videos)
        compare([case], eager.run([case.prompt()]), oracle)
        compare([case, case], eager.run([case.prompt(), case.prompt()]), oracle)


def asked_at_length(oracle, prompt_tokens: int, shown) -> Case:
    """A question so long that it and 64 kept tokens of `shown` are a prompt of nearly `prompt_tokens` tokens."""
    words = 1
    while len(oracle.processor.tokenizer(chat(VIDEO + "Is it red? " * words)).input_ids) + 64 < prompt_tokens:
        words += 1
    return Case(chat(VIDEO + "Is it red? " * words), (shown,), config={"preset": "stage2_only"})


def test_more_tokens_than_a_step_before_the_question_chooses(eager, oracle):
    """The question and 160 tokens of the video are more than a step's 1024; with the 64 that stay it fits."""
    case = asked_at_length(oracle, 960, video(3, frames=20))
    (answer,) = answers = eager.run([case.prompt()])
    (span,) = oracle.spans(answer.prompt)
    assert 1024 < span[1] - span[0] + 160 - 64 <= DENSE_TOKENS
    compare([case], answers, oracle)


def test_more_tokens_than_the_server_has_room_for_names_the_number_to_set(eager, oracle):
    shown, tokenizer = video(3, frames=20), oracle.processor.tokenizer
    case = asked_at_length(oracle, 1016, shown)
    (answer,) = eager.run([case.prompt()])
    assert f"dense_tokens={DENSE_TOKENS}: " in answer.error
    prompt = tokenizer(case.text).input_ids
    span = len(prompt) - prompt.index(oracle.model.config.video_token_id) - 1 + 160
    assert f"--prune-dense-tokens {span} or more" in answer.error
    shorter = Case(QUESTION, (shown,))
    compare([shorter], eager.run([shorter.prompt()]), oracle)


def test_more_kept_tokens_than_a_step_name_the_number_to_set():
    prompt = [5, *[6] * 40, *[7] * 30]
    counts = TokenCounts(total=90, encoded=90, stage1=90, entering=90, layers=(40,))
    media = [PromptMedium(modality="video", offset=1, length=40, counts=counts)]
    turn = TurnFormat(reply_start=(9,), num_more=0)
    check_spans(prompt, media, turn, StepLimits(70, 120))
    with pytest.raises(
        PruneConfigError, match=r"^max_num_batched_tokens=69: .* are 70 tokens.*--max-num-batched-tokens 70"
    ):
        check_spans(prompt, media, turn, StepLimits(69, 120))
    with pytest.raises(PruneConfigError, match=r"^dense_tokens=119: .* have 120 tokens.*--prune-dense-tokens 120"):
        check_spans(prompt, media, turn, StepLimits(70, 119))
    # Over several steps only the text has to fit one, with a placeholder before it.
    check_spans(prompt, media, turn, StepLimits(31, 120, several_steps=True))
    with pytest.raises(
        PruneConfigError, match=r"^max_num_batched_tokens=30: text .* has 31 tokens.*--max-num-batched-tokens 31"
    ):
        check_spans(prompt, media, turn, StepLimits(30, 120, several_steps=True))


@pytest.mark.parametrize("layers", [[1], [3], [1, 3]])
def test_layers_are_the_servers_under_tighten(layers):
    settings = ServerSettings(config=PruneConfig.parse("default"), override="tighten")
    with pytest.raises(PruneConfigError, match=r"changes layers.*--prune-override any"):
        settings.resolve({"layers": layers})
    with pytest.raises(PruneConfigError, match="allows no override"):
        ServerSettings(config=PruneConfig.parse("default"), override="none").resolve({"layers": layers})
