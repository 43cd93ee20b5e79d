"""Whatever a client sends as `prune` is refused in few words, or can be carried out."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from config_draws import Draw
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_prune.budget import plan_counts
from vllm_prune.budget_images import config_of_image, total_share
from vllm_prune.config import ImageConfig, PruneConfig, PruneConfigError, Stage1Config, preset
from vllm_prune.config.checks import MAX_INTEGER, MAX_LAYERS, MAX_PARAM_TEXT, MAX_PARAM_VALUES, MAX_TEXT
from vllm_prune.methods import VideoTokens
from vllm_prune.methods.prunevid import PruneVid
from vllm_prune.override import ServerSettings
from vllm_prune.serving.worker.query_free import competing_groups, merge_and_select

GRID = (4, 4, 4)
BASES = [PruneConfig(), preset("stage1_only"), PruneConfig(method="uniform", keep_ratio=0.5), preset("default")]
LONGEST = 1000  # characters of a message


def resolve(server: ServerSettings, value: object, num_tokens: int) -> tuple[PruneConfig | None, str]:
    try:
        config = server.resolve(value)
        server.check_counts(config, num_tokens)
    except PruneConfigError as error:
        return None, str(error)
    return config, ""


@settings(max_examples=400)
@given(st.randoms(use_true_random=True))
def test_what_is_accepted_can_be_carried_out(rng):
    base, value = rng.choice(BASES), Draw(rng).prune()
    server = ServerSettings(config=base, override="any")
    tokens = VideoTokens.from_features(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), GRID)
    config, refusal = resolve(server, value, tokens.num_tokens)
    if config is None:
        assert len(refusal) < LONGEST
        refusal.encode()
        return
    assert PruneConfig.parse(json.loads(config.to_json())) == config
    assert len(config.to_json()) < 64_000
    if config.plans_on_pixels:  # has another way to its tokens; merging them by features is as good here
        config = dataclasses.replace(config, stage1=config.stage1.after_encoder())
    counts = plan_counts(config, tokens.num_tokens)
    kept, assignment = merge_and_select(tokens, config, counts, attention=torch.ones(tokens.num_tokens))
    assert kept.num_tokens == counts.carried
    competing_groups(tokens, config, assignment)
    if config.image is not None:
        prune_images(config.image)


def prune_images(image: ImageConfig) -> None:
    """Two images of one request, of 64 tokens and of one."""
    sizes = [64, 1]
    try:
        share = total_share(image, sizes)
    except PruneConfigError:
        return
    for size in sizes:
        own = config_of_image(image, size, share)
        counts = plan_counts(own, size)
        tokens = VideoTokens.from_features(torch.randn(size, 8), (1, 1, size))
        assert merge_and_select(tokens, own, counts, attention=torch.ones(size))[0].num_tokens == counts.carried


@pytest.mark.parametrize("tau", [1, 1.0, 1 - 2**-53, 5e-324])
def test_stage_1_and_its_method_agree_on_tau(tau):
    try:
        PruneVid(tau=tau)
    except ValueError:
        with pytest.raises(PruneConfigError, match=r"stage1\.tau=1\.0: must be below 1"):
            Stage1Config(tau=tau)
    else:
        assert PruneVid(**Stage1Config(tau=tau).merging()).tau == tau


@pytest.mark.parametrize("method", ["evs", "vidcom2", "fastvid", "flashvid", "prunevid", "framefusion", "dycoke"])
def test_methods_that_need_every_token_refuse_stage_1(method):
    said = f"^method='{method}': needs every token of the video, and stage1 merges before it; give \"stage1\": false"
    for value in ({"method": method, "stage1": True}, {"method": method, "keep_ratio": 1.0, "stage1": {"tau": 0.9}}):
        with pytest.raises(PruneConfigError, match=said):
            PruneConfig.parse(value)
    with pytest.raises(PruneConfigError, match=said):
        PruneConfig.parse({"method": method}, base=preset("stage1_only"))
    assert PruneConfig.parse({"method": method, "stage1": False}, base=preset("stage1_only")).method == method


LARGE = [
    ({"method": "dpp", "params": {"rank": 10**30}}, "params.rank=1000000000000000000000000000000: "),
    ({"method": "dpp", "params": {"rank": 10**12}}, "rank=1000000000000; use"),
    ({"method": "random", "params": {"seed": 10**5000}}, "params.seed=<integer of 16610 bits>: "),
    ({"method": "random", "params": {"seed": [0] * (MAX_PARAM_VALUES + 1)}}, "params must have 256 values or fewer"),
    ({"method": "random", "params": {"seed": "x" * (MAX_PARAM_TEXT + 1)}}, "params must have 4096 characters or fewer"),
    ({"method": "random", "params": {"x" * 10**6: 1}}, "params must have 4096 characters or fewer"),
    ({"method": "random", "params": {"seed": float("nan")}}, "params.seed=nan: must be a finite number"),
    ({"method": "x" * 10**6}, "has 1000000 characters; use 128 or fewer"),
    ({"x" * 10**6: 1}, "prune: unknown key 'xxxx"),
    ({"stage1": {"x" * 10**6: 1}}, "stage1: unknown key 'xxxx"),
    ({"stage1": "x" * 10**6}, "stage1='xxxx"),
    ({"stage1": {"tau": ["x" * 10**6] * 9}}, "stage1.tau=['xxxx"),
    ({"stage1": {"where": "processor", "min_tokens": 10**30}}, f"must be {MAX_INTEGER} or less"),
    (
        {"method": "attention", "layers": list(range(200_000))},
        f"layers=[0, 1, .*has 200000 entries; use {MAX_LAYERS} or",
    ),
    ({"method": "attention", "layers": [10**30]}, f"must be {MAX_INTEGER} or less"),
    ({"method": "uniform", "target_token_num": 10**30}, f"must be {MAX_INTEGER} or less"),
    ({"method": "uniform", "keep_ratio": [0.5] * 200_000}, "keep_ratio=[0.5, 0.5"),
    ({"method": "uniform", "keep_ratio": [0.5] * 9, "target_token_num": [[1] * 10**6]}, "give one of the two"),
    ({"preset": ["x" * 10**6] * 10}, "preset=['xxxx"),
    ({"enable_stage1": "x" * 10**6}, "enable_stage1='xxxx"),
    ("{" + " " * MAX_TEXT, f"use {MAX_TEXT} or fewer"),
    ([[0] * 10**6], "prune=[[0, 0"),
]


@pytest.mark.parametrize(("value", "said"), LARGE, ids=[str(i) for i in range(len(LARGE))])
def test_large_values_are_refused_and_not_repeated(value, said):
    first, *rest = said.split(".*")
    with pytest.raises(PruneConfigError) as refused:
        PruneConfig.parse(value)
    message = str(refused.value)
    assert all(part in message for part in (first, *rest)), message
    assert len(message) < LONGEST
