"""Frames by the tokens that are kept, over HTTP: what is sampled, what is told of it, what is refused."""

from __future__ import annotations

import re
from typing import Any

import openai
import pytest
from serving_media import data_url, mp4
from serving_server import text, video

UNIFORM = {"method": "uniform", "stage1": None, "keep_ratio": 0.5}
ASK = text("What happens?")
CLIP = video(data_url(mp4(64, 56, 56)))
"""8 seconds: vLLM samples 16 frames, in steps of 4 tokens; of all of them 64 tokens stay."""


def refusal(server: Any, prune: Any, *content: Any, **others: Any) -> str:
    with pytest.raises(openai.APIStatusError) as refused:
        server.ask(*(content or (CLIP, ASK)), prune=prune, **others)
    assert refused.value.status_code in (400, 422)
    assert server.ask(CLIP, ASK, max_tokens=1).usage.completion_tokens == 1
    return refused.value.message


def test_the_same_tokens_see_more_of_the_video(open_server):
    """16 frames unpruned, 32 with half of their tokens, all 64 with a quarter."""
    for share, frames in ((1.0, 16), (0.5, 32), (0.25, 64), (0.1, 64)):
        prune = {"method": "uniform", "stage1": None, "keep_ratio": share, "frames": {"tokens": 32}}
        answer = open_server.ask(CLIP, ASK, prune=prune)
        told = answer.prune["videos"][0]
        assert told["frames"] == {"seen": frames, "of": 64}
        assert told["kept"] == answer.usage.prompt_tokens_details.multimodal_tokens["video"] <= 32
        assert answer.prune["config"].get("frames") == {"tokens": 32}
    assert "64 of 64 frames; tokens" in open_server.log()
    assert open_server.ask(CLIP, ASK, prune=UNIFORM).prune["videos"][0]["frames"] == {"seen": 16, "of": 64}


def test_a_server_that_allows_less_samples_no_more(server):
    told = server.ask(CLIP, ASK, prune={"frames": {"tokens": 300}}).prune["videos"][0]
    assert told["frames"]["seen"] == 16
    told = server.ask(CLIP, ASK, prune={"frames": {"tokens": 8}}).prune["videos"][0]
    assert told["frames"] == {"seen": 8, "of": 64}
    assert told["kept"] == 8


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (0, "frames.tokens=0: must be 1 or more"),
        (-1, "frames.tokens=-1: must be 1 or more"),
        ("many", "frames.tokens='many': must be an integer of 1 or more"),
        (1.5, "frames.tokens=1.5: must be an integer of 1 or more"),
        (10**9, "frames.tokens=1000000000: must be max_model_len="),
        (1, "frames.tokens=1: 2 frames of this video keep 2 tokens"),
    ],
)
def test_numbers_of_tokens_that_are_none(open_server, tokens, said):
    assert said in refusal(open_server, {**UNIFORM, "frames": {"tokens": tokens}})


def test_more_frames_than_the_file_has(open_server):
    few = video(data_url(mp4(6, 56, 56)))
    prune = {**UNIFORM, "frames": {"tokens": 300, "max": 50000}}
    assert open_server.ask(few, ASK, prune=prune).prune["videos"][0]["frames"] == {"seen": 6, "of": 6}


def test_a_video_of_one_frame(open_server):
    one = video(data_url(mp4(1, 56, 56)))
    assert "the file has 1 frame(s)" in refusal(open_server, {**UNIFORM, "frames": {"tokens": 100}}, one, ASK)


def test_ten_hours_of_black(open_server):
    """A frame every ten seconds. Half an hour of it is answered; ten are more than this model's positions."""
    prune = {"method": "uniform", "stage1": None, "keep_ratio": 0.1, "frames": {"tokens": 7}}
    told = open_server.ask(video(data_url(mp4(180, 28, 28, fps=0.1, black=True))), ASK, prune=prune).prune["videos"][0]
    assert told["frames"] == {"seen": 148, "of": 180}
    assert told["kept"] == 7
    black = video(data_url(mp4(3600, 28, 28, fps=0.1, black=True)))
    for config in (prune, {"preset": "default", "frames": {"tokens": 7}}, "default"):
        said = refusal(open_server, config, black, ASK)
        assert "the request's media take more than the" in said
        assert "send a shorter part of the video" in said


def test_a_video_with_more_tokens_than_the_operator_has_room_for(open_server):
    """By the option's name and the number that it would take; with `frames` fewer are sampled."""
    long = video(data_url(mp4(768, 112, 112, fps=2.0)))
    prune = {"preset": "stage2_only", "keep_ratio": 0.1}
    said = refusal(open_server, prune, long, ASK)
    found = re.search(r"dense_tokens=(\d+): .* (\d+) tokens before .* \((\d+) of the video\);.*", said)
    assert found, said
    room, needed, of_video = map(int, found.groups())
    assert of_video == 768 // 2 * 16 > room
    assert f"start the server with --prune-dense-tokens {needed} or more" in said
    told = open_server.ask(long, ASK, prune={**prune, "frames": {"tokens": 900}})
    assert 512 < told.prune["videos"][0]["frames"]["seen"] * 8 <= room * 7 // 8
