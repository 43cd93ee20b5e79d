"""Invariant 8: each bad input gets a 4xx that names field, value and remedy, and the next good request is answered."""

from __future__ import annotations

import json

import httpx
import openai
import pytest
from serving_cases import QUESTION
from serving_media import data_url, index_in_front, mp4, png, wav, y4m
from serving_server import image, text, video

from vllm_prune.features import FeaturesClient, FeaturesError

GOOD_FILE = mp4(16, 112, 112, seed=1)
GOOD = video(data_url(GOOD_FILE))
QUESTION_PART = text(QUESTION)
NUM_TOKENS = 32  # of GOOD: 4 seconds at 2 frames a second, in pairs; 4 x 4 cells
ALLOWED = 16


def refuse(server, *content, prune=None, **others) -> str:
    """The message of a 4xx; the server must answer a good request on the same connection right after it."""
    with pytest.raises(openai.APIStatusError) as refused:
        server.ask(*content, prune=prune, **others)
    assert 400 <= refused.value.status_code < 500, refused.value
    assert "Traceback" not in refused.value.message
    assert len(refused.value.message) < 1000
    assert server.ask(GOOD, QUESTION_PART, max_tokens=1).usage.completion_tokens == 1
    return refused.value.message


PRUNE = [
    ({"keep_ratio": 0}, ["keep_ratio=0", "above 0 and at most 1"]),
    ({"keep_ratio": -0.5}, ["keep_ratio=-0.5", "above 0 and at most 1"]),
    ({"keep_ratio": 1.01}, ["keep_ratio=1.01", "above 0 and at most 1"]),
    ({"keep_ratio": "0.5"}, ["keep_ratio='0.5'", "a number"]),
    ({"keep_ratio": True}, ["keep_ratio=True", "a number"]),
    ({"keep_ratio": [0.5, 0.2]}, ["keep_ratio=[0.5, 0.2]", "layers"]),
    ({"stage1": {"cluster_ratio": 0}}, ["stage1.cluster_ratio=0", "above 0 and at most 1"]),
    ({"stage1": {"tau": "high"}}, ["stage1.tau='high'", "a number"]),
    ({"stage1": {"taus": 0.5}}, ["'taus'", "tau, cluster_ratio"]),
    ({"stage1": 3}, ["stage1=3", "true, false or an object"]),
    ({"stage1": {"where": "pixels"}}, ["stage1.where='pixels'", "encoder, processor"]),
    ({"stage1": {"where": "processor", "tau": 1.5}}, ["stage1.tau=1.5"]),
    ({"stage1": {"where": "processor", "min_tokens": 9, "max_tokens": 8}}, ["min_tokens=9", "stage1.max_tokens"]),
    ({"target_token_num": 0}, ["target_token_num=0", "1 or more"]),
    ({"target_token_num": 2.5}, ["target_token_num=2.5", "integer"]),
    ({"target_token_num": NUM_TOKENS + 1}, [f"target_token_num={NUM_TOKENS + 1}", f"{NUM_TOKENS} tokens"]),
    ({"target_token_num": 5, "keep_ratio": 0.1}, ["keep_ratio=0.1", "target_token_num=5", "one of the two"]),
    ({"method": "magic"}, ["method='magic'", "random", "uniform"]),
    ({"method": ["random"]}, ["method=['random']", "a string"]),
    ({"params": 3}, ["params=3", "an object"]),
    ({"preset": "magic"}, ["preset='magic'", "stage1_only"]),
    ({"preset": ["default"]}, ["preset=['default']", "stage1_only"]),
    ("magic", ["'magic'", "stage1_only"]),
    ("{oops", ["'{oops'", "not valid JSON"]),
    ({"keep": 0.5}, ["'keep'", "keep_ratio"]),
    ([], ["prune=[]", "object"]),
    (7, ["prune=7", "object"]),
    ({"enable_stage1": "yes"}, ["enable_stage1='yes'", "true or false"]),
    ({"enable_pruning": "yes"}, ["enable_pruning='yes'", "true or false"]),
    ({"pruning_layer": -1}, ["pruning_layer=-1", "0 or more"]),
    # Looser than this server allows, or of another kind.
    ({"keep_ratio": 0.9}, ["'keep_ratio': 0.9", f"29 of {NUM_TOKENS}", f"{ALLOWED}", "--prune-override any"]),
    ({"target_token_num": ALLOWED + 1}, [f"{ALLOWED + 1} of {NUM_TOKENS}", "lower keep_ratio or target_token_num"]),
    ("baseline", ["'baseline'", "--prune-override any"]),
    ({"method": "uniform", "keep_ratio": 0.1}, ["method", "fewer tokens", "--prune-override any"]),
]


@pytest.mark.parametrize(("prune", "said"), PRUNE, ids=[str(prune) for prune, _ in PRUNE])
def test_wrong_configurations(server, prune, said):
    message = refuse(server, GOOD, QUESTION_PART, prune=prune)
    assert all(part in message for part in said), message


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none(server, value):
    """The client refuses to send these; others may not."""
    body = {"model": server.model, "messages": [{"role": "user", "content": [GOOD, QUESTION_PART]}], "max_tokens": 1}
    body["mm_processor_kwargs"] = {"prune": {"keep_ratio": "VALUE"}}
    sent = json.dumps(body).replace('"VALUE"', value)
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{server.root}/v1/chat/completions", content=sent, headers=headers, timeout=60)
    assert response.status_code == 400
    assert "keep_ratio=" in response.json()["error"]["message"]
    assert "above 0 and at most 1" in response.json()["error"]["message"]


def test_other_processor_options_stay_refused(server):
    """The server trusts requests with `prune`, and with nothing else."""
    options = {"prune": {"keep_ratio": 0.2}, "max_pixels": 10**9}
    message = refuse(server, GOOD, QUESTION_PART, extra_body={"mm_processor_kwargs": options})
    assert "--trust-request-mm-kwargs" in message


FRONT_INDEX = index_in_front(mp4(64, 112, 112, seed=2))
WHOLE = "send the whole of a video file"
FILES = {
    "empty": (b"", ["the file is empty", WHOLE]),
    "cut off": (GOOD_FILE[: len(GOOD_FILE) // 2], ["the file is cut off", "'mdat'", WHOLE]),
    "cut off, index in front": (FRONT_INDEX[: len(FRONT_INDEX) // 2], ["the file is cut off", "'mdat'", WHOLE]),
    "zeros": (bytes(5000), ["no known video format", "00 00 00", "ffmpeg"]),
    "no frames": (GOOD_FILE[:32] + bytes(500), ["Could not open video stream", "MP4", WHOLE]),
    "sound only": (wav(), ["sound (WAV)", "mp4"]),
    "text": (b"This is no video. " * 50, ["no known video format", "54 68 69 73", "ffmpeg"]),
    "picture": (png(112, 112), ["PNG picture", "image_url"]),
    "one frame": (mp4(1), ["1 frame(s)", "needs 2", "image_url"]),
    "one pixel": (y4m(8, 1, 1), ["1x1 pixels", "2 or more"]),
    "a line": (mp4(8, 2, 500), ["500x2 pixels", "200 times"]),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_usable_video(server, name):
    data, said = FILES[name]
    message = refuse(server, video(data_url(data)), QUESTION_PART)
    assert "video_url='data:video/mp4;base64," in message
    assert all(part in message for part in said), message


URLS = {
    "wrong base64": ("data:video/mp4;base64,%%%%", ["video_url='data:video/mp4;base64,%%%%'", "base64", WHOLE]),
    "no base64": ("data:video/mp4,abc", ["video_url=", "base64", WHOLE]),
    "no data": ("data:video/mp4", ["video_url=", "missing ','", WHOLE]),
    "unreachable": ("http://127.0.0.1:9/clip.mp4", ["video_url='http://127.0.0.1:9", "Cannot connect", "data URL"]),
    "no scheme": ("clip.mp4", ["video_url='clip.mp4'", "http"]),
    "unknown scheme": ("ftp://host/clip.mp4", ["video_url=", "http"]),
    "local file": ("file:///etc/hostname", ["video_url=", "--allowed-local-media-path"]),
}


@pytest.mark.parametrize("name", URLS)
def test_addresses_that_lead_nowhere(server, name):
    url, said = URLS[name]
    message = refuse(server, video(url), QUESTION_PART)
    assert all(part in message for part in said), message


def test_an_address_that_is_not_found(server, files):
    message = refuse(server, video(f"{files}/missing.mp4"), QUESTION_PART)
    assert "video_url=" in message
    assert "404" in message


def test_a_page_in_place_of_a_video(server, files):
    message = refuse(server, video(f"{files}/"), QUESTION_PART)
    assert "no known video format" in message


def test_more_videos_than_allowed(server):
    assert "At most 2 video(s)" in refuse(server, GOOD, GOOD, GOOD, QUESTION_PART)


def test_a_video_too_long_for_the_model_after_pruning(server):
    """More than 2048 tokens are left of it; asked for fewer, the same file is answered."""
    film = video(data_url(mp4(700, 112, 112, fps=2.0)))
    message = refuse(server, film, QUESTION_PART)
    assert "2048" in message
    assert "keep_ratio" in message, message
    assert server.ask(film, QUESTION_PART, prune={"target_token_num": 100}).usage.prompt_tokens < 200


def test_a_text_too_long_for_the_model(server):
    message = refuse(server, GOOD, text(QUESTION * 500))
    assert "2048" in message
    assert "reduce the length" in message


def test_media_of_a_refused_request_are_accepted_later(server):
    """vLLM's processor caches media before the request is refused; the engine must get them all the same."""
    picture, clip = image(data_url(png(112, 112, seed=9), "image/png")), video(data_url(mp4(16, seed=9)))
    film = video(data_url(mp4(700, 112, 112, fps=2.0, seed=9)))
    refuse(server, picture, clip, text(QUESTION * 500))
    refuse(server, picture, film, QUESTION_PART)
    refuse(server, picture, clip, QUESTION_PART, prune={"target_token_num": NUM_TOKENS + 1})
    assert server.ask(picture, clip, QUESTION_PART).usage.completion_tokens == 3


ON_PIXELS = {"stage1": {"where": "processor"}}
ONE_TOKEN = {"stage1": {"where": "processor", "still": "segments", "max_tokens": 1}}


@pytest.mark.parametrize(
    ("file", "prune"),
    [
        pytest.param(mp4(2, fps=2.0), ON_PIXELS, id="two frames"),
        pytest.param(mp4(5, fps=2.0), ON_PIXELS, id="five frames"),
        pytest.param(y4m(16, 112, 112), ON_PIXELS, id="one colour"),
        pytest.param(GOOD_FILE, ONE_TOKEN, id="one token for all segments"),
    ],
)
def test_unusual_videos_are_planned_on_pixels(open_server, file, prune):
    """Fewer frames than a plan compares, nothing that changes, less room than segments: all are answered."""
    assert open_server.ask(video(data_url(file)), QUESTION_PART, prune=prune, max_tokens=1).usage.completion_tokens == 1


def test_one_frame_is_refused_on_pixels_too(open_server):
    assert "frame" in refuse(open_server, video(data_url(mp4(1, fps=2.0))), QUESTION_PART, prune=ON_PIXELS)


def test_a_server_of_answers_hands_out_no_features(server):
    with (
        FeaturesClient(server.root) as client,
        pytest.raises(FeaturesError, match="it was started for answers, not for"),
    ):
        client.get(GOOD_FILE, QUESTION)
    assert server.ask(GOOD, QUESTION_PART, max_tokens=1).usage.completion_tokens == 1
