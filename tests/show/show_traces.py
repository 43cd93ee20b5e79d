"""Traces written by the server's own writer, of tokens that the real methods merged and chose; no model runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from vllm_prune.budget import plan_counts
from vllm_prune.config import PruneConfig
from vllm_prune.methods import VideoTokens
from vllm_prune.methods.attention_importance import select_top
from vllm_prune.serving.worker.query_free import merge_and_select, temporal_segments
from vllm_prune.serving.worker.trace import BEFORE_LAYERS, TraceWriter, VideoOutcome, VideoTrace
from vllm_prune.show import Panel, Story, read_trace
from vllm_prune.show.story import Frames, label_of, make_panel

GRID = (6, 5, 7)
CONFIGS: list[Any] = [
    "stage1_only",
    "stage2_only",
    "default",
    "aggressive",
    {"method": "uniform", "keep_ratio": 0.2},
    {"method": "tome", "keep_ratio": 0.3},
    {"method": "random", "keep_ratio": 0.1, "stage1": True},
    {"method": "attention", "layers": [1, 3], "keep_ratio": 0.5},
    {"method": "attention", "target_token_num": 1},
    "ask_first",
    {"method": "question", "stage1": True, "keep_ratio": 0.3},
]


def make_features(grid: tuple[int, int, int]) -> torch.Tensor:
    """[N, 16]: half of the frame stands still, the other changes at every step."""
    t, h, w = grid
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(1, h, w, 16, generator=generator).repeat(t, 1, 1, 1)
    video[:, :, w // 2 :] = torch.randn(t, h, w - w // 2, 16, generator=generator)
    return video.flatten(0, 2)


def write_trace(
    folder: Path, prune: Any, grid: tuple[int, int, int] = GRID, videos: int = 1, structure: int = 0
) -> Path:
    """Traces one request with equal videos under `prune`, with `structure` rows between the tokens of each."""
    config = PruneConfig.parse(prune)
    tokens = VideoTokens.from_features(make_features(grid), grid)
    counts = plan_counts(config, tokens.num_tokens, None, structure)
    _, assignment = merge_and_select(tokens, config, counts)
    writer = TraceWriter(str(folder))
    trace = VideoTrace(grid, counts, assignment, 0.0, config.to_json(), temporal_segments(tokens, config))
    outcomes = [_choose(trace, config) for _ in range(videos)]
    return writer.write([1, 2, 3], outcomes, 0.0)


def _choose(trace: VideoTrace, config: PruneConfig) -> VideoOutcome:
    """Spiky importance, as attention is; or logarithms, as a learned selector's scores are."""
    left, importance = torch.arange(trace.counts.carried), {}
    layers, counts = config.resolved_layers(6) if trace.counts.layers else (), trace.counts.layers
    if trace.counts.by_question:
        layers, counts = (BEFORE_LAYERS,), (trace.counts.kept,)
    for layer, count in zip(layers, counts, strict=True):
        importance[layer] = torch.rand(len(left), generator=torch.Generator().manual_seed(layer + 1)) ** 4
        if layer == BEFORE_LAYERS or config.needs_selector:
            importance[layer] = 3 * importance[layer] - 5
        left = left[select_top(importance[layer], count)]
    return VideoOutcome(trace, left, torch.zeros(3, len(left), dtype=torch.long), importance)


def make_panels(folder: Path, prunes: list[Any], grid: tuple[int, int, int] = GRID) -> list[Panel]:
    """The panels of some configurations."""
    traces = [read_trace(write_trace(folder / str(index), prune, grid))[0] for index, prune in enumerate(prunes)]
    return [make_panel(label_of(prune), trace, "yes") for prune, trace in zip(prunes, traces, strict=True)]


def make_frames(grid: tuple[int, int, int], missing: int = 0) -> Frames:
    """Bright noise, `missing` frames short of whole steps."""
    number = 2 * grid[0] - missing
    images = np.random.default_rng(0).integers(120, 256, (number, grid[1] * 28, grid[2] * 28, 3), dtype=np.uint8)
    return Frames(images, np.arange(number) / 2, "noise.mp4")


def make_story(
    folder: Path, prunes: list[Any], grid: tuple[int, int, int] = GRID, question: str | None = "What?"
) -> Story:
    return Story(make_frames(grid), question, make_panels(folder, prunes, grid))
