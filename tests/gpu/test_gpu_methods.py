"""The methods on a GPU: the CPU's choices, and the DPP without a launch for every pick."""

from __future__ import annotations

import pytest
import torch

from vllm_prune.methods import VideoTokens, create, names
from vllm_prune.methods._greedy_map import fits_triton
from vllm_prune.methods.dpp import DPP

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def video(seed: int, grid_thw: tuple[int, int, int], channels: int) -> VideoTokens:
    """Gaussian noise in float64, so that rounding decides nothing."""
    tokens = grid_thw[0] * grid_thw[1] * grid_thw[2]
    draw = torch.Generator().manual_seed(seed)
    return VideoTokens.from_features(torch.randn(tokens, channels, generator=draw).double(), grid_thw)


def on_gpu(tokens: VideoTokens) -> VideoTokens:
    return VideoTokens.from_features(tokens.features.cuda(), tokens.grid_thw)


@pytest.mark.parametrize("name", names())
def test_every_method_chooses_as_on_the_cpu(name: str) -> None:
    tokens = video(1, (8, 6, 7), 400)
    method = create(name)
    given = {"relevance": tokens.features[:, 0]} if getattr(method, "relevance", "") in ("required", "encoder") else {}
    expected = method.assign(tokens, 120, **given)
    found = method.assign(on_gpu(tokens), 120, **{key: value.cuda() for key, value in given.items()})
    assert torch.equal(found.anchor.cpu(), expected.anchor)
    assert torch.equal(found.slot.cpu(), expected.slot)


@pytest.mark.parametrize("scope", ["video", "segment", "frame"])
@pytest.mark.parametrize("mode", ["exact", "greedy"])
@pytest.mark.parametrize("case", range(20))
def test_the_dpp_picks_as_on_the_cpu(mode: str, case: int, scope: str) -> None:
    tokens = video(case, (1 + case % 5, 3 + case, 9), 600)
    tokens.features[3] = 0
    tokens.features[7] = tokens.features[5]
    relevance = tokens.features[:, 1] if case % 2 else None
    budget = tokens.num_tokens // 3
    expected = DPP(scope=scope, mode=mode).assign(tokens, budget, relevance)  # type: ignore[arg-type]
    found = DPP(scope=scope, mode=mode).assign(on_gpu(tokens), budget, relevance)  # type: ignore[arg-type]
    assert torch.equal(found.anchor.cpu(), expected.anchor)


def test_all_picks_of_a_batch_are_one_launch() -> None:
    assert fits_triton(torch.zeros(1, 196, 196, device="cuda")), "vLLM for CUDA brings Triton"
    tokens = on_gpu(video(2, (64, 14, 14), 256))
    launches = [_launches(tokens, budget) for budget in (640, 6272)]
    assert launches[0] == launches[1], "ten times the picks"


def _launches(tokens: VideoTokens, budget: int) -> int:
    DPP(scope="frame").assign(tokens, budget)  # compiles
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        DPP(scope="frame").assign(tokens, budget)
    return sum(event.count for event in profiler.key_averages() if "_pick" in event.key)
