"""The example of docs/features.md: its parts, and that it encodes once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from serving_server import Server

from vllm_prune.config import PruneConfig

EXAMPLE = Path(__file__).parents[2] / "examples" / "trajectory_policy"
MODULES = ("clips", "collect", "choose", "policy", "train", "error", "profile_stages", "report")
WIDTH = 12


@pytest.fixture(scope="module")
def example() -> Iterator[SimpleNamespace]:
    """Its modules, which nobody else gets to see by these names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLE))
        yield SimpleNamespace(**{name: import_module(name) for name in MODULES})
    for name in MODULES:
        del sys.modules[name]


def test_the_readme_shows_the_errors_that_were_measured():
    page, measured = (EXAMPLE / "README.md").read_text(), (EXAMPLE / "results" / "error.md").read_text()
    rows = [line for line in measured.splitlines() if line.startswith("|")]
    assert len(rows) > 3
    assert "\n".join(rows) in page


@pytest.fixture
def policy(example: SimpleNamespace) -> torch.nn.Module:
    torch.manual_seed(0)
    return example.policy.TrajectoryPolicy(WIDTH).eval()


def test_a_clip_is_of_its_seed_and_shows_the_ball_where_its_path_begins(example):
    one, same, other = (example.clips.make_clip(seed) for seed in (3, 3, 4))
    assert one.mp4() == same.mp4() != other.mp4()
    assert one.path.shape == (example.clips.HORIZON, 2)
    assert one.ball_cells((6, 8, 8)).any(axis=(1, 2)).all()
    moved = np.nonzero((one.frames[-1] != one.frames[-2]).any(axis=2))
    assert np.abs(np.array(moved)[::-1].mean(axis=1) / example.clips.SIDE - one.path[0]).max() < 0.2


def test_padding_is_nothing_to_the_policy(example, policy):
    tokens, cells = torch.randn(2, 7, WIDTH), torch.rand(2, 7, 3)
    mask = torch.arange(7).expand(2, 7) < 5
    with torch.inference_mode():
        padded, short = policy.remember(tokens, cells, mask), policy.remember(tokens[:, :5], cells[:, :5], mask[:, :5])
        assert torch.allclose(padded, short, atol=1e-5)
        assert not torch.allclose(padded, policy.remember(tokens, cells, torch.ones_like(mask)), atol=1e-3)
        path = torch.randn(2, example.clips.HORIZON, 2)
        assert policy(path, torch.tensor([0, 99]), padded).shape == path.shape


@pytest.mark.parametrize("steps", [100, 10, 5])
def test_whoever_knows_the_path_arrives_there_in_any_number_of_steps(example, policy, steps):
    truth = torch.rand(4, example.clips.HORIZON, 2) * 0.8 + 0.1
    asked = []

    class Knows(example.policy.TrajectoryPolicy):
        def forward(self, path, level, memory):
            asked.extend(level[:1].tolist())
            return example.policy.to_model(truth)

    found = example.error.denoise(Knows(WIDTH), torch.zeros(4, 1, 1), steps, torch.Generator().manual_seed(0))
    assert torch.allclose(found, truth, atol=1e-5)
    assert len(asked) == steps
    assert asked == sorted(set(asked), reverse=True)


def test_training_lowers_the_loss_and_error_reads_what_it_wrote(example, tmp_path, capsys):
    rng = np.random.default_rng(0)
    paths = rng.uniform(0.2, 0.8, (16, 1, 2)).repeat(example.clips.HORIZON, axis=1).astype(np.float32)
    tokens = np.pad(paths[:, :1], ((0, 0), (0, 2), (0, WIDTH - 2))).astype(np.float16)
    clips = {
        "tokens": tokens,
        "cells": rng.random((16, 3, 3), np.float32),
        "mask": np.ones((16, 3), bool),
        "ball": np.ones(16),
    }
    for part in ("train", "test"):
        np.savez(tmp_path / f"{part}-all.npz", **clips, paths=paths)
    trained = example.train.train(tmp_path / "train-all.npz", 60, 0)
    torch.save(trained.state_dict(), example.train.policy_file(tmp_path, "all", 0))
    pixels = example.error.measure(tmp_path, "all", 1)
    line = example.error.summarize(tmp_path, "all", pixels, pixels)
    assert (line["pixels"][5]["ratio"], line["pixels"][5]["ratio_se"]) == (1, 0)
    assert line["tokens"] == 3
    assert line["pixels"][10]["mean"] < example.error.measure_mean_path(tmp_path, "all")
    assert "| `all` | 3 | 100% |" in example.error.write_table([line], 1.0)


def test_the_encoder_runs_once_for_any_number_of_steps(example, server: Server):
    clip = example.clips.make_clip(5)
    stages = example.profile_stages
    with example.collect.client_of(server.root, "uniform-0.12") as client:
        width = client.get(example.clips.make_clip(6).mp4(), clip.question).tokens.shape[1]
        policy = example.policy.TrajectoryPolicy(width).eval()

        def predict(steps: int, *marks: int) -> tuple[int, int, int]:
            files = [stages.mark(clip, number) for number in marks]
            variant = stages.Variant("", steps, asks_each_step=len(files) == steps)
            found = stages.predict(policy, policy, variant, partial(stages.observe, client, clip.question, files))
            return found.calls["denoise"], found.calls["encode"], found.encoder_runs

        assert predict(100, 1) == (100, 1, 1)
        assert predict(10, 2) == (10, 1, 1)
        assert predict(10, 2) == (10, 1, 0)  # the server knows the clip
        assert predict(5, 3, 3, 3, 3, 3) == (5, 5, 1)
        assert predict(5, 4, 5, 6, 7, 8) == (5, 5, 5)


def test_a_choice_from_all_tokens_is_what_the_server_keeps(example, server: Server):
    clip = example.clips.make_clip(7)
    found = {}
    for choice in ("all", "vidcom2-0.12"):
        with example.collect.client_of(server.root, choice) as client:
            found[choice] = client.get(clip.mp4(), clip.question)
    config = PruneConfig.parse(example.collect.config_of("vidcom2-0.12"))
    kept = example.choose.choose(found["all"].tokens, config)
    assert found["all"].cells[kept].tolist() == found["vidcom2-0.12"].cells.tolist()
    assert torch.allclose(found["all"].tokens[kept], found["vidcom2-0.12"].tokens, atol=1e-5)
    share = example.collect.ball_share(clip, found["all"].cells[kept], example.clips.GRID)
    assert 0.5 < share <= example.collect.ball_share(clip, found["all"].cells, example.clips.GRID) == 1
