"""What needs no engine: which rows are handed out and what they are, answers as tensors, what is refused at start."""

from __future__ import annotations

import base64
import json
import subprocess
import sys

import httpx
import numpy as np
import pytest
import torch

from vllm_prune.budget import plan_counts
from vllm_prune.cli.main import main
from vllm_prune.config import PruneConfig, PruneConfigError
from vllm_prune.engine import engine_args
from vllm_prune.features import FeaturesClient, FeaturesError
from vllm_prune.layout import MediumLayout
from vllm_prune.serving.api.features import hand_out
from vllm_prune.serving.api.prompt_facts import PromptFacts, PromptMedium
from vllm_prune.serving.wire.digits import to_digits
from vllm_prune.serving.wire.features import FeatureRequest, served_layers
from vllm_prune.serving.wire.settings import read_settings

WIDTH = 4
CONFIG = PruneConfig.parse({"method": "uniform", "stage1": None, "keep_ratio": None, "target_token_num": 3})
TIMED = MediumLayout((2, 1, 2), text=((7, 8), (9,), (5,)), rope="per_step")
"""Slots: two of text, two cells, one of text, two cells, one of text."""


def facts(layout: MediumLayout, length: int, config: PruneConfig = CONFIG, **options: object) -> PromptFacts:
    counts = plan_counts(config, layout.num_cells, pinned=layout.num_pinned)
    medium = PromptMedium(modality="video", offset=2, length=length, counts=counts, layout=layout, seconds=(0.0, 2.0))
    said = {"step_seconds": lambda _: [0.0, 1.5], **options}
    return PromptFacts(config=config, media=(medium,), prompt_len=length + 4, processor_s=0.0, **said)


def rows(slots: list[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Of a prompt with two rows of text on either side: row i has i in all columns."""
    count = len(slots) + 4
    number = torch.arange(count, dtype=dtype)[:, None].expand(count, WIDTH)
    digits = to_digits(torch.tensor([0, 0, *slots, 0, 0])[:, None])
    return torch.cat((number, digits.to(dtype)), dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_timestamps_are_no_tokens_and_cells_are_told_in_any_precision(dtype):
    slots = [0, 1, 3, 4, 5, 6, 7]
    asked = FeatureRequest(layer=1, text=(-1, 0))
    found, described = hand_out(asked, facts(TIMED, len(slots)), list(range(11)), rows(slots, dtype))
    assert found[:, 0].tolist() == [4, 6, 7, 10, 0]
    (medium,) = described["media"]
    assert medium["cells"] == [[0, 0, 1], [1, 0, 0], [1, 0, 1]]
    assert medium["seconds"] == [0.0, 1.5, 1.5]
    assert (medium["rows"], medium["tokens"], described["text"]["rows"]) == ([0, 3], 3, [3, 5])


def test_a_video_that_keeps_everything_has_all_cells_in_order():
    config = PruneConfig()
    found, described = hand_out(FeatureRequest(layer=0), facts(TIMED, 8, config), list(range(12)), rows([0] * 8))
    assert found[:, 0].tolist() == [4, 5, 7, 8]
    assert described["media"][0]["cells"] == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]]


def test_seconds_are_those_of_the_frames_where_the_model_is_told_none():
    known = facts(TIMED, 7, step_seconds=lambda _: None)
    _, described = hand_out(FeatureRequest(layer=1), known, list(range(11)), rows([0, 1, 3, 4, 5, 6, 7]))
    assert described["media"][0]["seconds"] == [0.0, 2.0, 2.0]


def test_padding_is_zero_behind_the_tokens():
    layout = MediumLayout((1, 1, 2))
    found, described = hand_out(
        FeatureRequest(layer=0, text="all", pad=True), facts(layout, 2), list(range(6)), rows([0, 1])
    )
    assert found[:, 0].tolist() == [2, 3, 0, 0, 1, 4, 5]
    assert described["media"][0]["rows"] == [0, 3]
    assert described["media"][0]["tokens"] == 2


@pytest.mark.parametrize("layers", [[], [1.5], ["last"], [True], 3])
def test_layers_of_another_kind_end_the_start(layers):
    config = type("Config", (), {"vllm_prune": {"feature_layers": layers}})
    with pytest.raises(PruneConfigError, match="must be a list of layers"):
        read_settings(config)


def test_layers_of_the_options_reach_the_settings():
    overrides = engine_args("vllm_prune/embedded/model", "default", feature_layers=(0, 2, -1))["hf_overrides"]
    settings = read_settings(type("Config", (), {"vllm_prune": json.loads(json.dumps(overrides["vllm_prune"]))}))
    assert served_layers(settings.feature_layers, 6) == (0, 2, 6)
    with pytest.raises(PruneConfigError, match="the model has 1 decoder layers"):
        served_layers(settings.feature_layers, 1)


def test_layers_that_the_model_does_not_have_end_the_start_before_a_model_is_loaded(capsys):
    options = ["--runner", "pooling", "--prune-features", "0,99", "--gpu-memory-utilization", "0.1", "--dry-run"]
    assert main(["serve", "embedded", *options]) == 2
    assert "feature_layers=99: the model has" in capsys.readouterr().err


def answer(**changes: object) -> dict[str, object]:
    data = np.arange(8, dtype="<f4")
    medium = {"modality": "video", "rows": [0, 2], "tokens": 1, "grid_thw": [1, 1, 2], "cells": [[0, 0, 1]]}
    features = {"layer": 2, "dtype": "float32", "hidden_size": 4, "media": [{**medium, "seconds": None}]}
    features["text"] = {"rows": [2, 2], "places": [], "token_ids": []}
    body = {"data": [{"data": base64.b64encode(data.tobytes()).decode()}], "features": features}
    return {**body, "prune": {"config": CONFIG.to_dict()}, **changes}


def client(body: object, status: int = 200, **options: object) -> FeaturesClient:
    made = FeaturesClient("http://server", **options)
    made._http = httpx.Client(
        base_url="http://server", transport=httpx.MockTransport(lambda _: httpx.Response(status, json=body))
    )
    return made


def test_an_answer_becomes_tensors():
    found = client(answer(), config=CONFIG).get(b"clip", "?")
    assert found.tokens.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert found.mask.tolist() == [True, False]
    assert found.cells.tolist() == [[0, 0, 1], [-1, -1, -1]]
    assert found.seconds is None
    assert found.text.shape == (0, 4)


WRONG = {
    "another precision": ({}, 200, {"dtype": "bfloat16"}, "computes in float32"),
    "another configuration": ({}, 200, {"config": "stage1_only"}, "the server pruned by"),
    "no features": ({"features": None}, 200, {}, "no field `features`"),
    "no such page": ({}, 404, {}, "--runner pooling"),
    "refused": ({"error": {"message": "too long"}}, 400, {}, "400: too long"),
}


@pytest.mark.parametrize(("changes", "status", "options", "message"), WRONG.values(), ids=WRONG)
def test_a_server_that_differs_is_an_error(changes, status, options, message):
    with pytest.raises(FeaturesError, match=message):
        client(answer(**changes), status, **options).get(b"clip", "?")


def test_numbers_beyond_half_precision_are_an_error():
    data = base64.b64encode(np.full(8, np.inf, "<f2").tobytes()).decode()
    with pytest.raises(FeaturesError, match="use float32"):
        client(answer(data=[{"data": data}]), wire_dtype="float16").get(b"clip", "?")


def test_the_client_imports_no_vllm():
    script = "import sys, vllm_prune.features; sys.exit('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
