"""The server as its users see it: counts in `usage`, overrides, real clips, streaming."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from serving_cases import QUESTION
from serving_media import data_url, mp4, png
from serving_server import image, text, video

from vllm_prune.bench.clips import real_clips
from vllm_prune.budget import TokenCounts
from vllm_prune.config import PruneConfig
from vllm_prune.features import FeaturesClient, FeaturesError
from vllm_prune.serving.api.headers import REPORT_BYTES, tell_report, with_headers
from vllm_prune.serving.api.prompt_facts import PromptFacts, PromptMedium
from vllm_prune.serving.api.report import KVFormat, RequestReport

CLIP = video(data_url(mp4(16, 112, 112, seed=1)))  # 32 tokens before pruning
OTHER = video(data_url(mp4(32, 112, 168, seed=2)))  # 4 x 4 x 6 = 96
PICTURE = image(data_url(png(112, 112, seed=3), "image/png"))
ASK = text(QUESTION)


def counts(usage) -> dict[str, int]:
    return usage.prompt_tokens_details.multimodal_tokens


@pytest.fixture(scope="module")
def text_tokens(server) -> int:
    """Tokens of ASK and the template; a video adds its own and the two that bracket it."""
    return server.ask(ASK, max_tokens=1).usage.prompt_tokens


@pytest.mark.parametrize(
    ("content", "prune", "kept", "before"),
    [
        pytest.param([CLIP], None, 16, 32, id="server's own"),
        pytest.param([CLIP], {"keep_ratio": 0.25}, 8, 32, id="fewer"),
        pytest.param([OTHER], None, 48, 96, id="other video"),
        pytest.param([CLIP, OTHER], None, 64, 128, id="two videos"),
        pytest.param([OTHER, CLIP], {"target_token_num": 10}, 20, 128, id="two videos, a cap on each"),
    ],
)
def test_usage_counts_the_pruned_prompt(server, text_tokens, content, prune, kept, before):
    usage = server.ask(*content, ASK, prune=prune).usage
    assert counts(usage) == {"video": kept, "video_before_pruning": before}
    assert usage.prompt_tokens == text_tokens + 2 * len(content) + kept


def test_usage_with_an_image(server, text_tokens):
    usage = server.ask(PICTURE, CLIP, ASK).usage
    assert counts(usage) == {"image": 16, "video": 16, "video_before_pruning": 32}
    assert usage.prompt_tokens == text_tokens + 4 + 32


def test_usage_in_a_stream(server):
    whole = server.ask(CLIP, ASK, max_tokens=4)
    chunks = list(server.ask(CLIP, ASK, max_tokens=4, stream=True, stream_options={"include_usage": True}))
    assert counts(chunks[-1].usage) == {"video": 16, "video_before_pruning": 32}
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content


def test_text_alone_reports_no_video(server):
    assert not counts(server.ask(ASK).usage)


@pytest.mark.parametrize("name", ["bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4"])
def test_real_clips(server, name):
    usage = server.ask(video(data_url(real_clips()[name].read_bytes())), ASK).usage
    found = counts(usage)
    assert found["video_before_pruning"] > 100
    assert found["video"] == int(found["video_before_pruning"] * 0.5 + 0.5)


def test_a_video_from_an_address(server, files):
    usage = server.ask(video(f"{files}/clip.mp4"), ASK).usage
    assert counts(usage) == {"video": 16, "video_before_pruning": 32}


@pytest.mark.parametrize("prune", [{"keep_ratio": 0.5}, {"keep_ratio": 0.03}, {"target_token_num": 16}, {"stage1": {}}])
def test_tighten_allows_as_many_or_fewer(server, prune):
    assert counts(server.ask(CLIP, ASK, prune=prune).usage)["video"] <= 16


def test_repeating_the_servers_configuration_is_no_override(server):
    configuration = {"stage1": {"cluster_ratio": 0.5}}
    assert counts(server.ask(CLIP, ASK, prune=configuration).usage)["video"] == 16


# --- where a request asks for pruning ---


@pytest.mark.parametrize(
    "more", [{}, {"mm_processor_kwargs": {"prune": {"keep_ratio": 0.25}}}, {"media_io_kwargs": None}]
)
def test_a_field_beside_the_messages_is_heard(server, more):
    usage = server.ask(CLIP, ASK, extra_body={"prune": {"keep_ratio": 0.25}, **more}).usage
    assert counts(usage) == {"video": 8, "video_before_pruning": 32}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prune": {"keep_ratio": 2}}, "keep_ratio=2"),
        (
            {"prune": {"keep_ratio": 0.25}, "mm_processor_kwargs": {"prune": "default"}},
            "mm_processor_kwargs has another",
        ),
        ({"keep_ratio": 0.25}, "keep_ratio: nothing reads it there"),
        ({"pruning": {"keep_ratio": 0.25}}, "pruning: nothing reads it there"),
        ({"vllm_prune": "default"}, "vllm_prune: nothing reads it there"),
        ({"mm_processor_kwargs": {"keep_ratio": 0.25}}, "mm_processor_kwargs.keep_ratio: nothing reads it there"),
        ({"extra_body": {"prune": {"keep_ratio": 0.25}}}, "extra_body.prune: nothing reads it there"),
        ({"extra_body": {"mm_processor_kwargs": {}}}, "extra_body.mm_processor_kwargs: nothing reads it there"),
        ({"vllm_xargs": {"prune": "default"}}, "vllm_xargs.prune: nothing reads it there"),
    ],
)
def test_what_is_not_heard_is_refused(server, body, said):
    with pytest.raises(openai.BadRequestError, match=re.escape(said)):
        server.ask(CLIP, ASK, extra_body=body)


@pytest.mark.parametrize(
    "part", [{**CLIP, "prune": "default"}, {**CLIP, "video_url": {**CLIP["video_url"], "prune": {}}}]
)
def test_a_part_of_the_content_has_no_configuration(server, part):
    with pytest.raises(openai.BadRequestError, match="content part 0, prune: nothing reads it there"):
        server.ask(part, ASK)


def test_fields_of_others_pass(server):
    body = {"prune": None, "metadata": {"prune": "run 7"}, "method": "attention", "preset": "mine"}
    assert counts(server.ask(CLIP, ASK, extra_body=body).usage)["video"] == 16


# --- headers ---


def headers_of(server, *content, stream: bool = False, **body) -> tuple[dict[str, str], str]:
    body |= {"model": server.model, "messages": [{"role": "user", "content": list(content)}], "stream": stream}
    answer = httpx.post(f"{server.root}/v1/chat/completions", json={"max_completion_tokens": 2, **body}, timeout=120)
    answer.raise_for_status()
    return {name: value for name, value in answer.headers.items() if name.startswith("vllm-prune-")}, answer.text


@pytest.mark.parametrize("stream", [False, True])
def test_headers_tell_what_became_of_the_videos(server, stream):
    headers, body = headers_of(server, CLIP, OTHER, ASK, stream=stream)
    report = headers.pop("vllm-prune-report", None)
    assert headers == {
        "vllm-prune-method": "none",
        "vllm-prune-preset": "stage1_only",
        "vllm-prune-video-tokens-before": "128",
        "vllm-prune-video-tokens-kept": "64",
    }
    if stream:  # they are sent before the answer begins
        assert report is None
    else:
        assert json.loads(report) == json.loads(body)["prune"]


def test_no_video_no_headers_and_no_others(server):
    def one(number: int) -> str:
        content = [CLIP, ASK] if number % 2 else [ASK]
        body = {"prune": {"target_token_num": number}} if number % 2 else {}
        return headers_of(server, *content, **body)[0].get("vllm-prune-video-tokens-kept", "")

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(3, 15))) == [str(n) if n % 2 else "" for n in range(3, 15)]


def test_a_report_that_is_too_long_for_a_header_is_left_out():
    headers = {}
    for videos in (1, 40):
        config, counts = (
            PruneConfig.parse("default"),
            TokenCounts(total=8, encoded=8, stage1=4, entering=4, layers=(2,)),
        )
        media = (PromptMedium(modality="video", offset=0, length=2, counts=counts),) * videos
        facts = PromptFacts(config=config, media=media, prompt_len=99, processor_s=0.0)
        tell_report(RequestReport(facts, KVFormat(block_size=16, token_bytes=8)))
        headers[videos] = with_headers(dict)()["headers"]
    assert len(headers[1]["vllm-prune-report"]) <= REPORT_BYTES
    assert "vllm-prune-report" not in headers[40]
    assert headers[40]["vllm-prune-video-tokens-kept"] == str(40 * 2)


def test_a_server_for_answers_says_that_it_hands_out_no_features(server):
    with FeaturesClient(server.root) as client, pytest.raises(FeaturesError, match="--runner pooling"):
        client.get(mp4(4, 56, 56), QUESTION)
    assert httpx.post(f"{server.root}/pooling", json={"input": "hello"}).status_code == 404
