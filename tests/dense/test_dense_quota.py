"""Which tokens compete with each other in stage 2."""

from __future__ import annotations

import pytest
import torch

from vllm_prune.config import PruneConfig
from vllm_prune.methods import VideoTokens
from vllm_prune.methods.attention_importance import select_top_by_group
from vllm_prune.methods.prunevid import PruneVid
from vllm_prune.serving.worker.query_free import competing_groups, temporal_segments

FRAMES, CELLS, STILL = 8, 16, 12


def video() -> VideoTokens:
    """Two scenes of four frames, in which the first twelve cells stand still."""
    draw = torch.Generator().manual_seed(0)
    scenes = torch.randn(2, 1, CELLS, 64, generator=draw).expand(2, FRAMES // 2, CELLS, 64).reshape(FRAMES, CELLS, 64)
    features = scenes.clone()
    features[:, STILL:] = torch.randn(FRAMES, CELLS - STILL, 64, generator=draw)
    return VideoTokens.from_features(features.flatten(0, 1), (FRAMES, 4, 4))


@pytest.mark.parametrize("quota", ["global", "segment", "frame"])
def test_static_cells_compete_within_segments_and_the_others_within_frames(quota: str) -> None:
    config = PruneConfig.parse({"preset": "default", "params": {"quota": quota}})
    tokens = video()
    assert config.stage1 is not None
    assignment = PruneVid(**config.stage1.merging()).assign(tokens, tokens.num_tokens // 2)
    group = competing_groups(tokens, config, assignment)
    segment = temporal_segments(tokens, config)
    assert segment is not None
    frame, cell = assignment.anchor // CELLS, assignment.anchor % CELLS
    expected = {
        "global": [0] * len(group),
        "segment": [(int(segment[f]), bool(c < STILL)) for f, c in zip(frame, cell, strict=True)],
        "frame": [int(segment[f]) - FRAMES if c < STILL else int(f) for f, c in zip(frame, cell, strict=True)],
    }[quota]
    pairs = set(zip(group.tolist(), expected, strict=True))
    assert len(pairs) == len(set(expected)) == len(set(group.tolist())), "the same parts, by whatever numbers"


def test_every_frame_keeps_its_part_of_what_moves() -> None:
    importance = torch.arange(16.0)  # the last frames would take all
    frame = torch.arange(4).repeat_interleave(4)
    kept = select_top_by_group(importance, frame, 8)
    assert (frame[kept].bincount() == 2).all()
