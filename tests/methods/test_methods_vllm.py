"""EVS and VidCom2 keep exactly the tokens that vLLM's own functions keep."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from method_cases import noise

from vllm_prune.methods import VideoTokens
from vllm_prune.methods.evs import EVS
from vllm_prune.methods.vidcom2 import VidCom2


def _load(name: str) -> ModuleType:
    """vLLM's file alone: importing the package would start half of vLLM."""
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    path = Path(found.submodule_search_locations[0], "multimodal", "video_prune", f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"theirs_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _video(case: int, dtype: torch.dtype = torch.float32) -> tuple[VideoTokens, float]:
    draw = torch.Generator().manual_seed(case)
    frames, height, width = (int(torch.randint(1, 9, (), generator=draw)) for _ in range(3))
    features = noise(case, 1, height * width, 48) + (0.5 + case % 4) * noise(case + 1, frames, height * width, 48)
    rate = float(torch.rand((), generator=draw)) * 0.98
    return VideoTokens.from_features(features.flatten(0, 1).to(dtype), (frames, height, width)), rate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", range(100))
def test_evs(case: int, dtype: torch.dtype) -> None:
    tokens, rate = _video(case, dtype)
    theirs = _load("evs").compute_retention_mask(tokens.features, tokens.grid_thw, 1, rate)
    assert torch.equal(EVS(precise=False).assign(tokens, int(theirs.sum())).slot >= 0, theirs)


@pytest.mark.parametrize("case", range(100))
def test_vidcom2(case: int) -> None:
    tokens, rate = _video(case)
    theirs = _load("vidcom2").compute_retention_mask(tokens.features, tokens.grid_thw, 1, rate)
    mine = VidCom2(keep_ratio=1 - rate).assign(tokens, int(theirs.sum()))
    assert torch.equal(mine.slot >= 0, theirs)


def test_evs_tells_apart_what_bfloat16_ties() -> None:
    tokens, _ = _video(3, torch.bfloat16)
    wide = VideoTokens.from_features(tokens.features.float(), tokens.grid_thw)
    budget = tokens.num_tokens // 2
    precise = EVS().assign(tokens, budget).slot
    assert torch.equal(precise, EVS().assign(wide, budget).slot)
    assert not torch.equal(precise, EVS(precise=False).assign(tokens, budget).slot)


def test_evs_does_not_drift_to_early_frames_in_bfloat16() -> None:
    still = noise(0, 1, 196, 64) + 0.05 * noise(1, 32, 196, 64)
    tokens = VideoTokens.from_features(still.flatten(0, 1).bfloat16(), (32, 14, 14))
    frames = [float(tokens.grid[EVS(precise=p).assign(tokens, 1568).anchor, 0].float().mean()) for p in (True, False)]
    assert frames[0] > 12, "evenly over 32 frames, the first of which stays whole"
    assert frames[1] < frames[0] - 2
