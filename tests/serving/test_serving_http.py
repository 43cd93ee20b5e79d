"""The server as its users see it: counts in `usage`, overrides, real clips, streaming."""

from __future__ import annotations

import pytest
from serving_cases import QUESTION
from serving_media import data_url, mp4, png
from serving_server import image, text, video

from vllm_prune.bench.clips import real_clips

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
