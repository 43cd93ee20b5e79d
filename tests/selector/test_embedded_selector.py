"""The selectors that come with the embedded models."""

import json
import shlex

import numpy as np
import pytest
import torch

from benchmarks.tiny_model.clips import evaluation_set
from vllm_prune.bench.accuracy.videos import Frames
from vllm_prune.cli.main import make_parser
from vllm_prune.embedded import NAMES, model_path, selector_path
from vllm_prune.selector import load_selector
from vllm_prune.training.backbone import Backbone
from vllm_prune.training.losses import top_recall


@pytest.fixture(scope="module", params=NAMES)
def backbone(request) -> Backbone:
    return Backbone(str(model_path(request.param)), name=request.param)


def test_it_fits_its_model(backbone):
    loaded = load_selector(selector_path(backbone.identity.name), width=192, model=backbone.identity)
    loaded.check_embeddings(lambda ids: backbone.embed(ids.tolist()))
    assert loaded.header.model == backbone.identity


@pytest.mark.parametrize("name", NAMES)
def test_its_card_is_of_this_file_and_says_how_to_make_it(name):
    path = selector_path(name)
    loaded = load_selector(path, width=192)
    card = path.with_suffix(".md").read_text()
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["digest"] == loaded.digest
    assert loaded.digest in card
    command = loaded.header.training["command"]
    assert f"    {command}\n" in card
    parser, _ = make_parser("train-selector")
    args = parser.parse_args(shlex.split(command)[2:])
    assert (args.model, args.dataset, args.leave_out, args.layer) == (name, "synthetic", [], None)
    assert args.steps == loaded.header.training["steps"]
    assert {entry["chosen by"] for entry in facts["accuracy"]} >= {"all tokens", "selector, DPP"}


def test_it_finds_the_teachers_tokens_on_clips_that_no_training_saw(backbone):
    loaded = load_selector(selector_path(backbone.identity.name), width=192)
    layer = loaded.header.training["teacher_layer"]
    found = []
    for pixels, questions in evaluation_set(3, 16, seed=290, noise="all"):
        clip = backbone.encode(Frames(pixels, tuple(range(16)), 16, 2))
        asked = [backbone.ask(text) for _, text, _ in questions]
        words = [backbone.embed(each.question) for each in asked]
        scores = torch.stack([loaded.selector.score(clip.features, each, None, clip.grid) for each in words])
        found += top_recall(scores, torch.stack([seen.importance for seen in backbone.see(clip, asked, layer)]))
    assert np.mean(found) > 0.6  # 0.12 by chance
