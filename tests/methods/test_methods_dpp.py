"""Conditional DPP against the textbook, and what it may not do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from dpp_reference import cholesky, kernel_of, log_det, textbook
from hypothesis import given
from hypothesis import strategies as st
from method_cases import SEEDS, noise, random_video
from torch.utils._python_dispatch import TorchDispatchMode

from vllm_prune.bench.methods.runner import Size, make_video
from vllm_prune.methods import VideoTokens
from vllm_prune.methods._greedy_map import greedy_map
from vllm_prune.methods._ragged import sizes
from vllm_prune.methods._segments import token_segments
from vllm_prune.methods._share import share_budget
from vllm_prune.methods.dpp import DPP, LONGEST_SEGMENT, normalize_relevance
from vllm_prune.methods.topk import best_in_groups


@pytest.mark.parametrize("case", range(200))
def test_equals_the_textbook_in_every_segment(case: int) -> None:
    draw = torch.Generator().manual_seed(case)
    frames, height, width, channels = (int(torch.randint(1, high, (), generator=draw)) for high in (5, 4, 5, 40))
    tokens = random_video(case, (frames, height, width), channels + height * width)
    kept = torch.rand(tokens.num_tokens, generator=draw).argsort()[: max(1, tokens.num_tokens - case % 4)].sort().values
    tokens = VideoTokens(tokens.features[kept].double(), tokens.grid[kept], tokens.grid_thw)
    relevance = None if case % 3 == 0 else noise(case + 1, tokens.num_tokens).double()
    budget = int(torch.randint(1, tokens.num_tokens + 1, (), generator=draw))
    segment = tokens.grid[:, 0]
    expected = textbook(kernel_of(tokens.features, relevance), segment, share_budget(budget, sizes(segment, frames)))
    assert DPP(scope="frame").assign(tokens, budget, relevance).anchor.tolist() == expected


@pytest.mark.parametrize("case", range(20))
def test_sharing_by_gain_is_greedy_map_of_the_block_diagonal_kernel(case: int) -> None:
    tokens = random_video(case, (4, 2, 3), 30)
    tokens = VideoTokens.from_features(tokens.features.double(), tokens.grid_thw)
    relevance = noise(case + 1, 24).double()
    frame = tokens.grid[:, 0]
    kernel = kernel_of(tokens.features, relevance) * (frame[:, None] == frame)
    budget = 1 + case
    expected = textbook(kernel, torch.zeros_like(frame), torch.tensor([budget]))
    assert DPP(scope="frame", share="gain").assign(tokens, budget, relevance).anchor.tolist() == expected


def test_a_share_by_gain_is_the_beginning_of_each_segments_picks() -> None:
    """Gains of "lowrank" rise again at every restart; the picks taken must be the first ones all the same."""
    tokens = random_video(8, (2, 5, 6), 24)
    kept = DPP(scope="frame", mode="lowrank", rank=4, share="gain").assign(tokens, 20).anchor
    for frame in range(2):
        mine = kept[kept // 30 == frame] - 30 * frame
        alone = VideoTokens.from_features(tokens.features[30 * frame :][:30], (1, 5, 6))
        assert torch.equal(DPP(mode="lowrank", rank=4).assign(alone, len(mine)).anchor, mine)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", range(5))
def test_the_determinant_beats_other_choices(case: int, dtype: torch.dtype) -> None:
    tokens = random_video(case, (1, 8, 8), 96)
    tokens = VideoTokens.from_features((tokens.features + 0.5).to(dtype), tokens.grid_thw)
    relevance = noise(case + 9, 64)
    kernel = kernel_of(tokens.features, relevance)
    mine = log_det(kernel, DPP().assign(tokens, 20, relevance).anchor.tolist())
    exact = log_det(kernel, textbook(kernel, tokens.grid[:, 0], torch.tensor([20])))
    assert mine == pytest.approx(exact, abs=1e-3)
    for others in (noise(case, 64).argsort()[:20], relevance.topk(20).indices, torch.arange(20) * 64 // 20):
        assert mine >= log_det(kernel, others.tolist()) - 1e-9


@pytest.mark.parametrize("mode", ["greedy", "lowrank"])
def test_approximations_come_close(mode: Any) -> None:
    tokens = random_video(0, (2, 10, 10), 512)
    tokens = VideoTokens.from_features(
        tokens.features + 3 * noise(1, 2, 1, 512).expand(2, 100, 512).flatten(0, 1), (2, 10, 10)
    )
    frame = tokens.grid[:, 0]
    kernel = kernel_of(tokens.features, None) * (frame[:, None] == frame)
    exact = log_det(kernel, DPP(scope="frame").assign(tokens, 60).anchor.tolist())
    mine = log_det(kernel, DPP(scope="frame", mode=mode).assign(tokens, 60).anchor.tolist())
    chance = log_det(kernel, noise(2, 200).argsort()[:60].tolist())
    assert chance < mine <= exact + 1e-6


def test_lowrank_with_every_channel_is_exact() -> None:
    tokens = random_video(3, (3, 5, 5), 40)
    exact = DPP(scope="frame").assign(tokens, 30)
    assert torch.equal(DPP(scope="frame", mode="lowrank", rank=40).assign(tokens, 30).anchor, exact.anchor)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e6])
def test_scales_do_not_matter(scale: float) -> None:
    tokens = random_video(5, (3, 4, 4), 32)
    scaled = VideoTokens.from_features(tokens.features * scale, tokens.grid_thw)
    relevance = noise(6, 48)
    expected = DPP().assign(tokens, 20, relevance)
    assert torch.equal(DPP().assign(scaled, 20, relevance * scale).anchor, expected.anchor)


@pytest.mark.parametrize("mode", ["exact", "greedy", "lowrank"])
def test_tokens_that_add_nothing_come_last(mode: Any) -> None:
    tokens = random_video(7, (1, 4, 5), 32)
    useless = torch.tensor([3, 8, 12, 19])
    tokens.features[3] = 0
    tokens.features[8] = float("nan")
    tokens.features[12] = float("inf")
    tokens.features[19] = 2 * tokens.features[5]
    kept = DPP(mode=mode).assign(tokens, 16).anchor
    assert not set(kept.tolist()) & set(useless.tolist())
    for budget, more in ((17, [19]), (18, [19, 3]), (19, [19, 3, 8])):
        found = DPP(mode=mode).assign(tokens, budget).anchor.tolist()
        assert found == sorted([*kept.tolist(), *more]), "the duplicate, then broken ones, the earlier first"


def test_float32_picks_what_float64_picks() -> None:
    """12,544 tokens of noise, half kept: cosines of 0.0001 differ by less than float32 resolves near 1."""
    video = make_video(Size(64, 14, 14, 98, 4096), "cpu", "float32", 0.0, 0)
    found = DPP(scope="frame").assign(video, 64 * 98).anchor.view(64, 98)
    for kept, frame in zip(found % 196, video.features.view(64, 196, 4096), strict=True):
        assert set(kept.tolist()) == set(cholesky(kernel_of(frame, None), 98))


@pytest.mark.parametrize("mode", ["exact", "greedy", "lowrank"])
def test_without_a_relevance_the_first_pick_is_nearest_to_the_mean(mode: Any) -> None:
    tokens = random_video(21, (4, 5, 6), 24)
    units = torch.nn.functional.normalize(tokens.features.double(), dim=1).view(4, 30, 24)
    nearest = (units @ units.mean(1)[:, :, None]).squeeze(2).argmax(1)
    for relevance in (None, torch.full((120,), 3.0)):
        kept = DPP(scope="frame", mode=mode, rank=24).assign(tokens, 4, relevance).anchor
        assert kept.tolist() == (nearest + 30 * torch.arange(4)).tolist()


def test_the_first_pick_is_the_most_relevant_and_of_equals_the_nearest_to_the_mean() -> None:
    tokens = random_video(22, (1, 5, 6), 24)
    units = torch.nn.functional.normalize(tokens.features.double(), dim=1)
    relevance = torch.zeros(30)
    relevance[[4, 11, 25]] = 1
    nearest = max((4, 11, 25), key=lambda i: float(units[i] @ units.sum(0)))
    assert DPP().assign(tokens, 1, relevance).anchor.tolist() == [nearest]
    same = VideoTokens.from_features(torch.ones(30, 24) / 3, (1, 5, 6))
    assert DPP().assign(same, 1).anchor.tolist() == [0], "ties keep the earlier"


def test_a_relevance_may_be_broken() -> None:
    relevance = torch.tensor([math.nan, 1.0, math.inf, -math.inf, 3.0])
    assert normalize_relevance(relevance, 5, relevance).tolist() == pytest.approx([1e-6, 1e-6, 1, 1e-6, 1])
    for same in (torch.full((4,), math.nan), torch.full((4,), 7.0)):
        assert normalize_relevance(same, 4, same).tolist() == [1.0] * 4


def test_a_relevance_must_fit() -> None:
    with pytest.raises(ValueError, match=r"relevance: shape \(3,\); use \[8\]"):
        DPP().assign(random_video(0, (2, 2, 2)), 3, torch.ones(3))


@pytest.mark.parametrize(
    ("quota", "message"),
    [
        ([3, 9, 1], r"quota\[1\]=9 for a group of 8 tokens; use 0..8"),
        ([3, -1, 1], r"quota\[1\]=-1 for a group of 8 tokens"),
        ([3, 2], r"quota of shape \(2,\) .* up to 2; use one number for each group"),
        ([3, 2, 1, 1], r"quota\[3\]=1 for a group of 0 tokens; use 0..0"),
    ],
)
def test_budgets_of_segments_must_fit_them(quota: list[int], message: str) -> None:
    features, segment = noise(0, 24, 16), torch.arange(3).repeat_interleave(8)
    with pytest.raises(ValueError, match=message):
        DPP().rank_tokens(features, segment, torch.tensor(quota), None)
    with pytest.raises(ValueError, match=message):
        best_in_groups(features[:, 0], segment, torch.tensor(quota))


def test_segments_may_be_empty_and_their_budgets_unequal() -> None:
    features = noise(1, 20, 32).double()
    segment = torch.tensor([0] * 7 + [2] * 9 + [3] * 4)
    quota = torch.tensor([5, 0, 2, 0, 0])
    gain, _ = DPP().rank_tokens(features, segment, quota, None)
    assert gain.isfinite().nonzero().squeeze(1).tolist() == textbook(kernel_of(features, None), segment, quota)


class Watch(TorchDispatchMode):
    """Counts operations, remembers the largest tensor, and may forbid waiting for the device."""

    def __init__(self, may_wait: bool = True) -> None:
        super().__init__()
        self.operations, self.largest, self.may_wait = 0, 0, may_wait

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.may_wait and func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            raise AssertionError(f"{func} waits for the device")
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def watched(method: DPP, tokens: VideoTokens, budget: int) -> Watch:
    with Watch() as watch:
        method.assign(tokens, budget)
    return watch


def test_segments_are_one_batch() -> None:
    few, many = random_video(0, (4, 4, 4)), random_video(0, (64, 4, 4))
    method = DPP(scope="frame")
    assert watched(method, few, 4 * 8).operations == watched(method, many, 64 * 8).operations


def test_the_loop_never_waits_for_the_device() -> None:
    units = torch.nn.functional.normalize(noise(0, 5, 20, 32), dim=2)
    kernel = units @ units.mT
    each = torch.arange(5)
    ones = torch.ones(5, 20)
    with Watch(may_wait=False):
        greedy_map(lambda pick: kernel[each, pick], 0 * ones, ones, ones.bool(), 10, 10, each)
    with pytest.raises(AssertionError, match="waits"), Watch(may_wait=False):
        ones.sum().item()


def test_no_matrix_of_the_whole_video() -> None:
    tokens = random_video(1, (3, 30, 30), 16)
    assert watched(DPP(mode="lowrank", rank=8), tokens, 40).largest < 2700 * 128
    assert watched(DPP(), tokens, 40).largest < 2700 * 129, "the kernel of a block of 128, and 16 columns of all"
    assert watched(DPP(mode="greedy"), tokens, 40).largest == 2700**2, "unless asked for"


@pytest.mark.parametrize("channels", [3, 8, 24])
def test_as_many_picks_as_channels_explain_the_rest(channels: int) -> None:
    """What comes after them comes by relevance, earlier tokens first; no further step is made for it."""
    tokens, relevance = random_video(11, (1, 10, 10), channels), noise(12, 100)
    segment, quota = tokens.grid[:, 0], torch.tensor([80])
    gain, turn = DPP(mode="exact").rank_tokens(tokens.features, segment, quota, relevance)
    weight = normalize_relevance(relevance, 100, tokens.features)
    order = turn[gain > -torch.inf].argsort()
    picked = (gain > -torch.inf).nonzero().squeeze(1)[order]
    first, later = picked[:channels], picked[channels:]
    rest = weight.index_fill(0, first, -torch.inf).sort(descending=True, stable=True).indices
    assert later.tolist() == rest[: 80 - channels].tolist()
    alone, _ = DPP(mode="exact").rank_tokens(tokens.features, segment, torch.tensor([channels]), relevance)
    assert torch.equal((alone > -torch.inf).nonzero().squeeze(1), first.sort().values)


@given(seed=SEEDS, channels=st.integers(6, 20), dtype=st.sampled_from([torch.float32, torch.float64]))
@pytest.mark.parametrize(("frames", "cells"), [(1, 60), (3, 60), (1, 600)], ids=["one", "batch", "rounds"])
def test_broken_tokens_come_last_where_picks_are_more_than_channels(
    frames: int, cells: int, seed: int, channels: int, dtype: torch.dtype
) -> None:
    """Before them the second of two that point the same way, before these the others; whatever their relevance."""
    tokens, way = random_video(seed, (frames, cells, 1), channels), torch.arange(frames * cells)
    is_broken = torch.zeros(frames, cells, dtype=torch.bool)
    for frame in range(frames):
        draw = noise(seed + frame, cells).argsort() + frame * cells
        broken, copies, originals = draw[:12], draw[12:24], draw[24:36]
        tokens.features[broken] = torch.tensor([math.nan, math.inf, -math.inf, 0.0]).repeat(3)[:, None]
        tokens.features[copies], way[copies] = 2 * tokens.features[originals], originals
        is_broken.view(-1)[broken] = True
    tokens = VideoTokens.from_features(tokens.features.to(dtype), tokens.grid_thw)
    suspect = is_broken.flatten() | (way != torch.arange(len(way)))
    for relevance in (None, suspect.float(), noise(seed + 9, len(way))):
        for spared in (24, 12):
            kept = DPP(scope="frame").assign(tokens, frames * (cells - spared), relevance).anchor
            assert not is_broken.flatten()[kept].any()
            assert len(way[kept].unique()) == frames * (cells - 24)


def test_no_parameters_make_a_segment_too_long() -> None:
    """Frames of one place in features, so that clustering leaves one long segment and many short ones."""
    frame = torch.arange(600).repeat_interleave(25)
    features = noise(13, 15000, 4) + (frame[:, None] >= 560) * (100.0 * frame[:, None])
    tokens = VideoTokens.from_features(features, (600, 5, 5))
    for ratio in (1e-9, 0.005, 1.0):
        segment = token_segments(tokens, ratio, LONGEST_SEGMENT)
        size = sizes(segment, 600)
        assert int(size.max()) < LONGEST_SEGMENT + 25
        assert bool((segment.diff() >= 0).all())
        assert torch.equal(segment, segment.view(600, 25)[:, :1].expand(-1, 25).flatten())
    uncut = token_segments(tokens, 0.005)
    assert int(sizes(uncut, 600).max()) > LONGEST_SEGMENT
    assert bool((token_segments(tokens, 0.005, LONGEST_SEGMENT).diff()[uncut.diff() > 0] > 0).all())
    for mode in ("exact", "greedy", "lowrank"):
        method = DPP(scope="segment", mode=mode, temporal_segment_ratio=1e-9)
        assert watched(method, tokens, 50).largest <= 3 * (LONGEST_SEGMENT + 25) ** 2
