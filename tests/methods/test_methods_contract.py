"""What holds for every registered method."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from method_cases import EXTENTS, SEEDS, assign, budgets_of, mixed_video, noise, random_video

from vllm_prune.methods import Assignment, Method, VideoTokens, compact, create, names

pytestmark = pytest.mark.parametrize("name", names())
LOOK_AT_NOTHING = {"random", "topk", "uniform"}
NEED_ALL = {
    "dycoke",
    "evs",
    "fastvid",
    "fastvid_attention",
    "flashvid",
    "framefusion",
    "holitom",
    "prunevid",
    "vidcom2",
}
"""Methods that compare a token with others at or near its place in other frames."""


def _check(tokens: VideoTokens, method: Method, budget: int) -> Assignment:
    assignment = assign(method, tokens, budget)
    assignment.validate()
    assert assignment.num_slots == budget
    assert len(assignment.slot) == tokens.num_tokens
    return assignment


@given(seed=SEEDS, grid_thw=EXTENTS)
def test_exactly_the_budget_comes_out(name: str, seed: int, grid_thw: tuple[int, int, int]) -> None:
    method = create(name)
    for tokens in (random_video(seed, grid_thw), mixed_video(seed, grid_thw)):
        for budget in budgets_of(tokens.num_tokens):
            _check(tokens, method, budget)


@pytest.mark.parametrize("grid_thw", [(1, 1, 1), (1, 1, 9), (9, 1, 1), (1, 5, 5), (33, 4, 4), (3, 20, 1), (64, 2, 2)])
def test_every_budget_of_a_grid(name: str, grid_thw: tuple[int, int, int]) -> None:
    tokens = mixed_video(1, grid_thw)
    method = create(name)
    for budget in range(1, tokens.num_tokens + 1, max(1, tokens.num_tokens // 40)):
        _check(tokens, method, budget)


def test_keep_everything_is_the_identity(name: str) -> None:
    tokens = mixed_video(2, (4, 3, 3))
    assignment = assign(create(name), tokens, tokens.num_tokens)
    assert torch.equal(assignment.slot, torch.arange(tokens.num_tokens))
    assert torch.equal(compact(tokens, assignment).features, tokens.features)


def test_same_choice_every_time_and_on_any_thread_count(name: str) -> None:
    tokens = mixed_video(3, (12, 5, 5), channels=64)
    first = assign(create(name), tokens, 70)
    torch.set_num_threads(2)
    second = assign(create(name), tokens, 70)
    assert torch.equal(first.slot, second.slot)
    assert torch.equal(first.anchor, second.anchor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_dtype(name: str, dtype: torch.dtype) -> None:
    tokens = mixed_video(4, (6, 4, 4))
    tokens = VideoTokens.from_features(tokens.features.to(dtype), tokens.grid_thw)
    assignment = _check(tokens, create(name), 30)
    assert compact(tokens, assignment).features.dtype == dtype


def test_layout_in_memory_does_not_matter(name: str) -> None:
    tokens = mixed_video(5, (6, 4, 4))
    strided = VideoTokens.from_features(tokens.features.t().contiguous().t(), tokens.grid_thw)
    assert not strided.features.is_contiguous()
    expected, found = assign(create(name), tokens, 30), assign(create(name), strided, 30)
    assert torch.equal(expected.slot, found.slot)


def test_input_is_left_as_it_was(name: str) -> None:
    tokens = mixed_video(6, (6, 4, 4))
    before = tokens.features.clone()
    assign(create(name), tokens, 20)
    assert torch.equal(tokens.features, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 0.0])
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_broken_and_empty_features(name: str, value: float, share: float) -> None:
    tokens = random_video(7, (6, 4, 4))
    broken = noise(8, tokens.num_tokens).argsort()[: int(share * tokens.num_tokens)]
    tokens.features[broken] = value
    for budget in (1, 13, 50, 95):
        _check(tokens, create(name), budget)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_any_scale(name: str, scale: float) -> None:
    tokens = mixed_video(9, (6, 4, 4))
    scaled = VideoTokens.from_features(tokens.features * scale, tokens.grid_thw)
    _check(scaled, create(name), 30)


def test_identical_tokens(name: str) -> None:
    tokens = VideoTokens.from_features(torch.ones(96, 5), (6, 4, 4))
    for budget in (1, 7, 48, 95):
        _check(tokens, create(name), budget)


def test_frames_without_tokens(name: str) -> None:
    """What an earlier step left of a video: methods take it or say that they need all of it."""
    whole = mixed_video(10, (6, 4, 4))
    some = (whole.grid[:, 0] % 3 != 1) & (whole.grid[:, 2] > 0)
    tokens = VideoTokens(whole.features[some], whole.grid[some], whole.grid_thw)
    said = rf"48 tokens for grid_thw=\(6, 4, 4\); {name} needs the unpruned video"
    for budget in (1, 3, 20, 47):
        with pytest.raises(ValueError, match=said) if name in NEED_ALL else nullcontext():
            _check(tokens, create(name), budget)


@pytest.mark.parametrize("budget", [0, -1, 97])
def test_a_wrong_budget_names_the_range(name: str, budget: int) -> None:
    with pytest.raises(ValueError, match=rf"budget={budget} for 96 tokens; use 1\.\.96"):
        assign(create(name), random_video(0, (6, 4, 4)), budget)


def test_methods_compare_equal_and_cannot_change(name: str) -> None:
    method = create(name)
    assert method == create(name)
    with pytest.raises(AttributeError):
        method.name = "other"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 0.0])
@pytest.mark.parametrize("common", [0.0, 1.0, 2.4], ids=["mean cosine 0", "mean cosine 0.5", "mean cosine 0.85"])
def test_broken_tokens_are_never_preferred(name: str, common: float, value: float, dtype: torch.dtype) -> None:
    """They are kept no more often than the others; encoders' tokens resemble each other, so zero is unusual there."""
    if name in LOOK_AT_NOTHING:
        pytest.skip(f"{name} does not look at features")
    features = noise(11, 8, 49, 128) * 0.5 + noise(12, 1, 49, 128) * 0.866 + common * noise(13, 128)
    tokens = VideoTokens.from_features(features.flatten(0, 1).to(dtype), (8, 7, 7))
    broken = noise(14, tokens.num_tokens).argsort()[: tokens.num_tokens // 20]
    tokens.features[broken] = value
    is_broken = torch.zeros(tokens.num_tokens, dtype=torch.bool).index_fill_(0, broken, True)
    for budget in (tokens.num_tokens // 20, tokens.num_tokens // 4):
        kept = is_broken[_check(tokens, create(name), budget).anchor]
        assert kept.sum() * (tokens.num_tokens - len(broken)) <= (~kept).sum() * len(broken)
