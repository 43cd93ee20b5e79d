"""Qwen3-VL over HTTP, with deepstack at three layers as published models have it: what is served, what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from oracle import micro_model

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
from serving_media import data_url, mp4, png
from serving_server import OPTIONS, Server, environment, image, serve_command, text, video

pytestmark = pytest.mark.long

ASK = text("What happens?")
GOOD = video(data_url(mp4(16, seed=1)))
CELLS = 32
"""Of GOOD: 2 seconds at 2 frames a second, in pairs; 4 x 4 cells."""
LAYERS = "must lie between 2 and 4 for a decoder of 6 layers, the first 3 of which add rows"
NO_TURNS = (
    "{% for m in messages %}{% for part in m.content %}"
    "{% if 'video' in part.type %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def write_model(folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(micro_model.QWEN3_VISION, "deepstack_visual_indexes", [0, 1, 2])
        return micro_model.write_micro_model(folder, family="qwen3_vl")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("http")
    with Server(str(write_model(folder / "micro")), folder, prune="default", override="any") as running:
        yield running


@pytest.fixture(scope="module")
def without_turns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = write_model(tmp_path_factory.mktemp("turns") / "micro")
    (model / "chat_template.jinja").write_text(NO_TURNS)
    return model


def refuse(server: Server, prune: Any) -> str:
    with pytest.raises(openai.APIStatusError) as refused:
        server.ask(GOOD, ASK, prune=prune)
    assert refused.value.status_code == 400
    assert server.ask(GOOD, ASK, prune="stage1_only", max_tokens=1).usage.completion_tokens == 1
    return refused.value.message


@pytest.mark.parametrize(
    ("prune", "said"),
    [
        ({"method": "attention", "stage1": None, "keep_ratio": 0.5, "layers": [1]}, f"layers=[1]: {LAYERS}"),
        ({"method": "attention", "keep_ratio": 0.5, "layers": [0, 3]}, f"layers=[0, 3]: {LAYERS}"),
        ({"method": "attention", "keep_ratio": 0.5, "layers": [5]}, f"layers=[5]: {LAYERS}"),
        ("fastv", f"layers=[1]: {LAYERS}"),
        ("framefusion", f"layers=[1]: {LAYERS}"),
        ({"method": "uniform", "stage1": None, "target_token_num": CELLS + 1}, f"{CELLS} tokens"),
    ],
)
def test_what_the_model_cannot_do_is_a_bad_request(server, prune, said):
    assert said in refuse(server, prune)


@pytest.mark.parametrize("prune", ["default", "pyramiddrop", "sparsevlm", {"method": "attention", "layers": [2]}])
def test_layers_behind_the_last_level_are_served(server, prune):
    found = server.ask(GOOD, ASK, prune=prune)
    assert found.prune["videos"][0]["kept"] == found.usage.prompt_tokens_details.multimodal_tokens["video"] < CELLS


@pytest.mark.parametrize("prune", ["baseline", "default", {"method": "evs", "stage1": None, "keep_ratio": 0.25}])
def test_structure_is_told_apart_beside_other_media(server, prune):
    """Whole prompts differ by the tokens that were dropped, and by nothing else."""
    content = (GOOD, image(data_url(png(84, 112), "image/png")), video(data_url(mp4(9, seed=2))), ASK)
    whole, found = (server.ask(*content, prune=own) for own in ("baseline", prune))
    counts = found.usage.prompt_tokens_details.multimodal_tokens
    structure = sum(own["structure"] for own in found.prune["videos"])
    assert structure == counts["video_structure"] > 0
    assert counts["image"] == whole.usage.prompt_tokens_details.multimodal_tokens["image"]
    assert whole.usage.prompt_tokens - found.usage.prompt_tokens == counts["video_before_pruning"] - counts["video"]


def test_a_file_of_one_frame_is_a_bad_request(server):
    with pytest.raises(openai.BadRequestError) as refused:
        server.ask(video(data_url(mp4(1))), ASK)
    assert "video 0 has 1 frame(s), and the model's videos need 2" in refused.value.message
    assert "array" not in refused.value.message


def test_without_an_end_of_turn_a_question_cannot_choose(without_turns, tmp_path):
    command = serve_command(str(without_turns), "--prune", "default", *OPTIONS)
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
    assert ended.returncode != 0
    assert "chat template yields no end of a question's turn" in ended.stdout + ended.stderr
    with Server(str(without_turns), tmp_path, prune="stage1_only", override="any") as server:
        assert "method='attention'" in (said := refuse(server, "default"))
        assert "choose a query-free method" in said


def test_a_layer_between_the_levels_ends_the_start(tmp_path):
    command = serve_command(str(write_model(tmp_path / "micro")), "--prune", "fastv", *OPTIONS)
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
    assert ended.returncode != 0
    assert f"layers=[1]: {LAYERS}" in ended.stdout + ended.stderr
