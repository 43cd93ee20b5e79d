"""Qwen3.5 over HTTP, by vLLM's own kernels: what is served with and without prefix caching, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from chat_templates import THINKING
from oracle.micro_model import write_micro_model

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
from serving_media import data_url, mp4, png
from serving_server import OPTIONS, Server, environment, image, serve_command, text, video

pytestmark = pytest.mark.long

HYBRID = (*OPTIONS, "--dtype", "bfloat16")
UNCACHED = (*HYBRID, "--no-enable-prefix-caching")
ASK = text("What happens?")
VIDEO = video(data_url(mp4(16, seed=1)))
MIXED = (VIDEO, image(data_url(png(84, 112), "image/png")), video(data_url(mp4(9, seed=2))), ASK)
STATES = "most layers of which keep one state of all tokens so far"
LAYERS = "a question chooses behind layers with attention, which in this decoder are 2; the others keep one state"
THOUGHTS = ({}, {"enable_thinking": False})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write_micro_model(tmp_path_factory.mktemp("hybrid") / "micro", family="qwen3_5")
    (folder / "chat_template.jinja").write_text(THINKING)
    return str(folder)


@pytest.fixture(scope="module", params=[True, False], ids=["cached", "uncached"])
def caches(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="module")
def server(caches: bool, model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = HYBRID if caches else UNCACHED
    with Server(
        model, tmp_path_factory.mktemp("http"), prune="stage1_only", override="any", options=options
    ) as running:
        yield running


def refuse(server: Server, prune: Any) -> str:
    with pytest.raises(openai.APIStatusError) as refused:
        server.ask(VIDEO, ASK, prune=prune)
    assert refused.value.status_code == 400
    assert server.ask(VIDEO, ASK, max_tokens=1).usage.completion_tokens == 1
    return refused.value.message


def test_a_question_inside_the_decoder_needs_states_that_are_not_cached(server, caches):
    if caches:
        assert STATES in (said := refuse(server, "default"))
        assert "--no-enable-prefix-caching" in said
    else:
        found = server.ask(VIDEO, ASK, prune="default").prune["videos"][0]
        assert found["kept"] < found["stage1"] < found["before"]


@pytest.mark.parametrize("prune", [{"method": "attention", "keep_ratio": 0.5, "layers": [1]}, "fastv", "framefusion"])
def test_a_pruning_layer_that_keeps_a_state_is_a_bad_request(server, caches, prune):
    assert (STATES if caches else f"layers=[1]: {LAYERS}") in refuse(server, prune)


@pytest.mark.parametrize("thoughts", THOUGHTS, ids=["open", "closed"])
@pytest.mark.parametrize("prune", ["baseline", "default", {"method": "uniform", "stage1": None, "keep_ratio": 0.25}])
def test_images_and_videos_beside_thoughts(server, caches, prune, thoughts):
    """Whole prompts differ by the tokens that were dropped, and by nothing else."""
    if caches and prune == "default":
        pytest.skip("refused there")
    body = {"chat_template_kwargs": thoughts}
    whole, found = (server.ask(*MIXED, prune=own, extra_body=body) for own in ("baseline", prune))
    counts = found.usage.prompt_tokens_details.multimodal_tokens
    assert whole.usage.prompt_tokens - found.usage.prompt_tokens == counts["video_before_pruning"] - counts["video"]
    assert counts["image"] == whole.usage.prompt_tokens_details.multimodal_tokens["image"]
    assert found.usage.completion_tokens == 3


def test_an_empty_thought_is_all_that_a_closed_one_adds(server):
    open_, closed = (server.ask(*MIXED, extra_body={"chat_template_kwargs": own}).usage for own in THOUGHTS)
    assert closed.prompt_tokens > open_.prompt_tokens
    assert closed.prompt_tokens_details.multimodal_tokens == open_.prompt_tokens_details.multimodal_tokens


@pytest.mark.parametrize("sent", ["<think>\nIt may be red, or blue.\n</think>\n\nred", "red"], ids=["thought", "bare"])
@pytest.mark.parametrize("thoughts", THOUGHTS, ids=["open", "closed"])
def test_a_second_turn_without_thoughts_reuses_the_blocks_of_the_first(server, caches, thoughts, sent):
    """Whether the client sends thoughts back, which the template drops, or a reasoning parser kept them apart."""
    new = video(data_url(mp4(128, seed=3 + len(thoughts) + len(sent))))
    asked = {"role": "user", "content": [new, ASK]}
    turns = [asked, {"role": "assistant", "content": sent}, {"role": "user", "content": "How many shapes are there?"}]
    first, second = (
        server.client.chat.completions.create(
            model=server.model,
            messages=messages,
            max_completion_tokens=1,
            temperature=0.0,
            extra_body={
                "chat_template_kwargs": thoughts,
                "mm_processor_kwargs": {"prune": {"method": "uniform", "stage1": None, "keep_ratio": 0.5}},
            },
        ).usage
        for messages in ([asked], turns)
    )
    block = int(server.label("vllm:cache_config_info", "block_size"))
    whole = (first.prompt_tokens - 1) // block * block
    assert whole > first.prompt_tokens_details.multimodal_tokens["video"] > block, (first, block)
    assert (second.prompt_tokens_details.cached_tokens or 0) == (whole if caches else 0)
    assert not first.prompt_tokens_details.cached_tokens


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--prune", "default"), STATES),
        (("--prune", "fastv", "--no-enable-prefix-caching"), f"layers=[1]: {LAYERS}"),
        (
            ("--prune", "stage1_only", "--speculative-config", '{"method": "mtp", "num_speculative_tokens": 1}'),
            "speculative_config.method='mtp': the drafter's look-ahead would be given the wrong rows",
        ),
        (
            ("--prune", "stage1_only", "--speculative-config", '{"method": "ngram", "num_speculative_tokens": 1}'),
            "speculative_config.method='ngram': the model's decoder is a hybrid",
        ),
    ],
    ids=["attention", "layer", "mtp", "ngram"],
)
def test_what_ends_the_start(model, arguments, said):
    """The checkpoint has no layers that draft."""
    command = serve_command(model, *arguments, *HYBRID)
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
    assert ended.returncode != 0
    assert said in ended.stdout + ended.stderr
