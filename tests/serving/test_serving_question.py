"""The question chooses before the first layer, or by a selector behind one, over HTTP: unusual prompts, bad input."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from serving_media import data_url, mp4, png
from serving_server import Server, image, text, video

from vllm_prune.embedded import clips

CLIP = clips()[0]
ASKED = CLIP.questions[0]
QUESTION = text(ASKED.question)
URL = data_url(CLIP.path.read_bytes())
OTHER_URL = data_url(clips()[1].path.read_bytes())
TOKENS, KEPT = 128, 26  # of CLIP, and of those at 20%
ASK_FIRST: dict[str, Any] = {"method": "question", "stage1": False, "keep_ratio": 0.2}
INSIDE: dict[str, Any] = ASK_FIRST | {"method": "attention"}
PICTURE = image(data_url(png(84, 112), "image/png"))
PICTURE_TOKENS, PICTURE_KEPT = 12, 6


def with_params(**params: Any) -> dict[str, Any]:
    return {**ASK_FIRST, "params": params}


def inside(fields: dict[str, Any] | None = None, /, **params: Any) -> dict[str, Any]:
    """Behind layer 2, but for `fields`."""
    return {**INSIDE, **(fields or {}), "params": {"relevance": "learned", **params}}


OF_IMAGES = {name: value for name, value in inside(selector="dpp").items() if name != "stage1"} | {"keep_ratio": 0.5}
ASKING = {
    "learned": with_params(relevance="learned"),
    "text": with_params(relevance="text"),
    "inside": inside(),
    "inside, diverse": inside(selector="dpp", scope="segment", exponent=16),
}


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


def system_turn(server: Server, *content: dict[str, Any], asked: str, prune: Any) -> Any:
    """Media in the system's turn, the question in the user's."""
    turns: list[Any] = [{"role": "system", "content": list(content)}, {"role": "user", "content": asked}]
    return server.client.chat.completions.create(
        model=server.model, messages=turns, max_completion_tokens=1, extra_body={"prune": prune}
    )


PROMPTS = {
    "no question": ((video(URL),), 1),
    "a question of spaces": ((video(URL), text("   ")), 1),
    "two videos, one question": ((video(URL), video(OTHER_URL), QUESTION), 2),
    "text before and after": ((text("Look: "), video(URL), QUESTION, text(" Answer in one word.")), 1),
    "text before only": ((QUESTION, video(URL)), 1),
    "4000 tokens": ((video(URL), text(f"{ASKED.question} " * 600)), 1),
}


@pytest.mark.parametrize("by", ASKING)
@pytest.mark.parametrize("name", PROMPTS)
def test_unusual_prompts_are_answered_from_the_right_count(embedded, name, by):
    content, num_videos = PROMPTS[name]
    if name == "4000 tokens" and by.startswith("inside"):
        pytest.skip("text that chooses inside is in one step: see the longest question inside")
    usage = embedded.ask(*content, prune=ASKING[by], max_tokens=1).usage
    kept = usage.prompt_tokens_details.multimodal_tokens
    assert kept == {"video": num_videos * KEPT, "video_before_pruning": num_videos * TOKENS}
    if name == "4000 tokens":
        assert 4000 < usage.prompt_tokens < 8192
    check_answers(embedded)


@pytest.mark.parametrize("prune", ["ask_first", inside()], ids=["before", "inside"])
def test_a_video_in_the_system_turn_is_chosen_from_by_the_users_question(embedded, prune):
    completion = system_turn(embedded, video(URL), asked=ASKED.question, prune=prune)
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


BAD_INSIDE = {
    "exponent below": (inside(selector="dpp", exponent=-0.1), ["params.exponent=-0.1", "from 0 to 16"]),
    "exponent above": (inside(selector="dpp", exponent=17), ["params.exponent=17", "from 0 to 16"]),
    "exponent unused": (inside(exponent=1), ["params.exponent", '"dpp"']),
    "of attention": (inside(heads="mean"), ["params.heads", 'needs relevance "attention"']),
    "of question": ({**INSIDE, "params": {"scope": "video"}}, ["params.scope", 'needs relevance "learned"']),
    "relevance": ({**INSIDE, "params": {"relevance": "text"}}, ["params.relevance='text'", "attention, learned"]),
    "other layer": (
        inside({"layers": [1]}),
        ["the output of layer 1", "and one that reads the output of layer 2"],
    ),
    "one of two layers": (inside({"layers": [2, 4]}), ["reads the output of layer 4", "train-selector --layer 4"]),
    "no such layer": (inside({"layers": [5]}), ["layers=[5]", "between 0 and 4"]),
    "layer of images": (
        {"image": OF_IMAGES | {"layers": [3]}},
        ["image.params.relevance", "reads the output of layer 3"],
    ),
    "exponent of images": (
        {"image": OF_IMAGES | {"params": {"relevance": "learned", "selector": "dpp", "exponent": 99}}},
        ["image.params.exponent=99", "from 0 to 16"],
    ),
}


@pytest.mark.parametrize("name", [*BAD, *(f"inside, {name}" for name in BAD_INSIDE)])
def test_wrong_configurations(embedded, name):
    prune, said = (BAD | {f"inside, {name}": values for name, values in BAD_INSIDE.items()})[name]
    message = refuse(embedded, video(URL), QUESTION, prune=prune)
    assert all(part in message for part in said), message


@pytest.mark.parametrize("prune", ["ask_first", inside()], ids=["before", "inside"])
def test_a_clip_of_one_frame(embedded, prune):
    assert "1 frame(s)" in refuse(embedded, video(data_url(mp4(1))), QUESTION, prune=prune)


@pytest.mark.parametrize("prune", ["ask_first", inside()], ids=["before", "inside"])
def test_a_question_longer_than_the_model_takes(embedded, prune):
    assert "8192" in refuse(embedded, video(URL), text(f"{ASKED.question} " * 1500), prune=prune)
    check_answers(embedded)


@pytest.mark.parametrize("prune", [inside(), inside(selector="dpp")], ids=["topk", "dpp"])
def test_the_longest_question_inside(embedded, prune):
    """It is in one step, whatever the video is."""
    usage = embedded.ask(video(URL), text(f"{ASKED.question} " * 200), prune=prune, max_tokens=1).usage
    assert 1750 < usage.prompt_tokens < 2048 + KEPT
    assert usage.prompt_tokens_details.multimodal_tokens["video"] == KEPT
    message = refuse(embedded, video(URL), text(f"{ASKED.question} " * 430), prune=prune)
    assert all(part in message for part in ("max_num_batched_tokens=2048", "--max-num-batched-tokens")), message


@pytest.mark.parametrize("before", ["attention", "question"])
def test_images_beside_a_video(embedded, before):
    """Each by its own configuration, a selector's or another's."""
    prune = (inside() if before == "attention" else with_params()) | {"image": OF_IMAGES}
    kept = embedded.ask(PICTURE, video(URL), QUESTION, prune=prune, max_tokens=1).usage
    assert kept.prompt_tokens_details.multimodal_tokens == {
        "video": KEPT,
        "video_before_pruning": TOKENS,
        "image": PICTURE_KEPT,
        "image_before_pruning": PICTURE_TOKENS,
    }
    check_answers(embedded)


WITHOUT = {
    "ask_first": ("ask_first", '"text"'),
    "question": (with_params(), '"text"'),
    "inside": (inside(), '--layer 2` makes, or give other layers, or "relevance": "attention"'),
    "images": ({"image": OF_IMAGES}, "image.params.relevance"),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_a_server_without_a_selector(open_server, name):
    prune, otherwise = WITHOUT[name]
    message = refuse(open_server, video(URL), QUESTION, PICTURE, prune=prune)
    assert all(part in message for part in ('params.relevance="learned"', "--prune-selector FILE", otherwise)), message


def test_without_a_selector_similarity_chooses(open_server):
    usage = open_server.ask(video(URL), QUESTION, prune=with_params(relevance="text"), max_tokens=1).usage
    counts = usage.prompt_tokens_details.multimodal_tokens
    assert counts["video"] == round(counts["video_before_pruning"] * 0.2)
