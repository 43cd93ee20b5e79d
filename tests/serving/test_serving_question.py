"""Methods by which the question chooses before the first layer, asked over HTTP: unusual prompts and bad input."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from serving_media import data_url, mp4
from serving_server import Server, text, video

from vllm_prune.embedded import clips

CLIP = clips()[0]
ASKED = CLIP.questions[0]
QUESTION = text(ASKED.question)
URL = data_url(CLIP.path.read_bytes())
OTHER_URL = data_url(clips()[1].path.read_bytes())
TOKENS, KEPT = 128, 26  # of CLIP, and of those at 20%
ASK_FIRST: dict[str, Any] = {"method": "question", "stage1": False, "keep_ratio": 0.2}


def with_params(**params: Any) -> dict[str, Any]:
    return {**ASK_FIRST, "params": params}


def check_answers(server: Server) -> None:
    """The server answers a question rightly, from as many tokens as are to stay."""
    completion = server.ask(video(URL), QUESTION, prune="ask_first", max_tokens=1)
    assert completion.choices[0].message.content.strip() == ASKED.answer
    assert completion.usage.prompt_tokens_details.multimodal_tokens["video"] == KEPT


def refuse(server: Server, *content: dict[str, Any], prune: Any) -> str:
    """The message of a 4xx, after which the server answers."""
    with pytest.raises(openai.APIStatusError) as refused:
        server.ask(*content, prune=prune)
    assert 400 <= refused.value.status_code < 500, refused.value
    assert "Traceback" not in refused.value.message
    assert server.ask(video(data_url(mp4(16))), text("How many?"), max_tokens=1).usage.completion_tokens == 1
    return refused.value.message


def system_turn(server: Server, *content: dict[str, Any], asked: str) -> Any:
    """Media in the system's turn, the question in the user's."""
    turns: list[Any] = [{"role": "system", "content": list(content)}, {"role": "user", "content": asked}]
    return server.client.chat.completions.create(
        model=server.model, messages=turns, max_completion_tokens=1, extra_body={"prune": "ask_first"}
    )


PROMPTS = {
    "no question": ((video(URL),), 1),
    "a question of spaces": ((video(URL), text("   ")), 1),
    "two videos, one question": ((video(URL), video(OTHER_URL), QUESTION), 2),
    "text before and after": ((text("Look: "), video(URL), QUESTION, text(" Answer in one word.")), 1),
    "text before only": ((QUESTION, video(URL)), 1),
    "4000 tokens": ((video(URL), text(f"{ASKED.question} " * 600)), 1),
}


@pytest.mark.parametrize("relevance", ["learned", "text"])
@pytest.mark.parametrize("name", PROMPTS)
def test_unusual_prompts_are_answered_from_the_right_count(embedded, name, relevance):
    content, num_videos = PROMPTS[name]
    usage = embedded.ask(*content, prune=with_params(relevance=relevance), max_tokens=1).usage
    kept = usage.prompt_tokens_details.multimodal_tokens
    assert kept == {"video": num_videos * KEPT, "video_before_pruning": num_videos * TOKENS}
    if name == "4000 tokens":
        assert 4000 < usage.prompt_tokens < 8192
    check_answers(embedded)


def test_a_video_in_the_system_turn_is_chosen_from_by_the_users_question(embedded):
    completion = system_turn(embedded, video(URL), asked=ASKED.question)
    assert completion.usage.prompt_tokens_details.multimodal_tokens["video"] == KEPT
    check_answers(embedded)


BAD = {
    "exponent below": (with_params(exponent=-1), ["params.exponent=-1", "from 0 to 16"]),
    "exponent above": (with_params(exponent=16.5), ["params.exponent=16.5", "from 0 to 16"]),
    "exponent in words": (with_params(exponent="2"), ["params.exponent='2'", "a number"]),
    "exponent true": (with_params(exponent=True), ["params.exponent=True", "a number"]),
    "exponent unused": (with_params(exponent=1, selector="topk"), ["params.exponent", "topk"]),
    "relevance": (with_params(relevance="bm25"), ["params.relevance='bm25'", "learned, text"]),
    "selector": (with_params(selector="mmr"), ["params.selector='mmr'", "dpp, topk"]),
    "selector as a list": (with_params(selector=["dpp"]), ["params.selector=['dpp']", "dpp, topk"]),
    "scope": (with_params(scope="shot"), ["params.scope='shot'", "video, segment, frame"]),
    "text": (with_params(relevance="text", text="last"), ["params.text='last'", "mean, max"]),
    "text of learned": (with_params(text="max"), ["params.text", '"relevance": "text"']),
    "of attention": (with_params(quota="frame"), ["'quota'", "relevance", "exponent"]),
    "layers": ({**ASK_FIRST, "layers": [1]}, ["layers"]),
    "several ratios": ({**ASK_FIRST, "keep_ratio": [0.5, 0.2]}, ["keep_ratio=[0.5, 0.2]"]),
    "more than there are": (
        {**ASK_FIRST, "keep_ratio": None, "target_token_num": TOKENS + 1},
        [f"target_token_num={TOKENS + 1}", f"{TOKENS} tokens"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_configurations(embedded, name):
    prune, said = BAD[name]
    message = refuse(embedded, video(URL), QUESTION, prune=prune)
    assert all(part in message for part in said), message


def test_a_clip_of_one_frame(embedded):
    assert "1 frame(s)" in refuse(embedded, video(data_url(mp4(1))), QUESTION, prune="ask_first")


def test_a_question_longer_than_the_model_takes(embedded):
    assert "8192" in refuse(embedded, video(URL), text(f"{ASKED.question} " * 1500), prune="ask_first")
    check_answers(embedded)


@pytest.mark.parametrize("prune", ["ask_first", with_params(), with_params(relevance="learned")], ids=str)
def test_a_server_without_a_selector(open_server, prune):
    message = refuse(open_server, video(URL), QUESTION, prune=prune)
    assert all(part in message for part in ('params.relevance="learned"', "--prune-selector FILE", '"text"')), message


def test_without_a_selector_similarity_chooses(open_server):
    usage = open_server.ask(video(URL), QUESTION, prune=with_params(relevance="text"), max_tokens=1).usage
    counts = usage.prompt_tokens_details.multimodal_tokens
    assert counts["video"] == round(counts["video_before_pruning"] * 0.2)
