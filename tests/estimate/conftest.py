"""A random micro model in Hugging Face's implementation, whose operations PyTorch counts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

from vllm_prune.estimate import ModelDims
from vllm_prune.estimate.dims import parse_dims

sys.path.insert(0, str(Path(__file__).parents[1]))
from oracle.micro_model import FAMILIES, randomize


@pytest.fixture(
    scope="session", params=[name for name in FAMILIES if not name.endswith("_moe") and name != "qwen3_5"]
)  # see test_estimate_kv
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    config: Any = FAMILIES[request.param][0]()
    config.vision_config.depth = 3
    if hasattr(config.vision_config, "fullatt_block_indexes"):
        config.vision_config.fullatt_block_indexes = [1]
    config._attn_implementation = "eager"  # the counter has no formula for the fused attention of CPUs
    config._experts_implementation = "eager"  # nor for grouped products
    made = AutoModelForImageTextToText.from_config(config).float().eval()
    randomize(made, seed=0)
    return made.requires_grad_(False)


@pytest.fixture(scope="session")
def dims(model: PreTrainedModel) -> ModelDims:
    return parse_dims(model.config.to_dict())


@pytest.fixture(scope="session")
def patches():
    """Random patches of a video of (t, h, w) tokens, and its grid in patches."""

    def make(model: PreTrainedModel, grid: tuple[int, int, int]) -> tuple[torch.Tensor, tuple[int, int, int]]:
        vision = model.config.vision_config
        t, h, w = grid[0], grid[1] * vision.spatial_merge_size, grid[2] * vision.spatial_merge_size
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        return torch.randn(t * h * w, width, generator=torch.Generator().manual_seed(0)), (t, h, w)

    return make
