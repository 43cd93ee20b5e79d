"""The DPP over a whole video: rounds of picks against one pick after the other, and what candidates lose."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dpp_reference import cholesky, kernel_of, log_det, textbook
from hypothesis import given
from hypothesis import strategies as st
from method_cases import SEEDS, mixed_video, noise, random_video

from vllm_prune.methods import VideoTokens, create
from vllm_prune.methods import _greedy_map_blocks as blocks
from vllm_prune.methods._candidates import tile
from vllm_prune.methods._ragged import sizes
from vllm_prune.methods._segments import token_segments
from vllm_prune.methods._share import share_budget
from vllm_prune.methods.dpp import DPP, LONGEST_SEGMENT, LONGEST_VIDEO, MOST_PICKS


def scenes(frames: int, height: int, width: int, channels: int) -> VideoTokens:
    """Four scenes with a still background, sensor noise and a token that moves."""
    video = torch.empty(frames, height * width, channels)
    for frame in range(frames):
        scene = 4 * frame // frames
        video[frame] = noise(scene, height * width, channels) + noise(99, channels)
        video[frame] += 0.1 * noise(1000 + frame, height * width, channels)
        video[frame, frame % (height * width)] = noise(200 + scene, channels)
    return VideoTokens.from_features(video.flatten(0, 1), (frames, height, width))


@pytest.mark.parametrize("case", range(12))
def test_a_long_set_is_picked_from_as_a_short_one(case: int) -> None:
    """More than 512 tokens, so that no kernel is formed: the picks of the textbook, also in float32."""
    tokens = random_video(case, (1 + case % 5, 13, 41 + case), 200) if case % 2 else scenes(9 + case, 9, 8, 200)
    tokens.features[[3, 77]] = 0
    tokens.features[5] = float("nan") if case % 3 else float("inf")
    tokens.features[60] = 4 * tokens.features[200]
    relevance = noise(case, tokens.num_tokens) if case % 4 < 2 else None
    kernel = kernel_of(tokens.features.nan_to_num(0, 0, 0).index_fill(0, torch.tensor(5), 0), relevance)
    expected = cholesky(kernel, 120)
    for dtype in (torch.float64, torch.float32):
        video = VideoTokens.from_features(tokens.features.to(dtype), tokens.grid_thw)
        assert set(DPP().assign(video, 120, relevance).anchor.tolist()) == set(expected)


@given(seed=SEEDS, left=st.integers(1, 40), most=st.integers(1, 70))
def test_a_round_on_a_gpu_picks_as_one_on_a_cpu(seed: int, left: int, most: int) -> None:
    points = torch.nn.functional.normalize(noise(seed, 60, 40).double(), dim=1)
    weight, explained = torch.rand(60).double().clamp(1e-3), torch.rand(60).double() / 2
    score = blocks.score_tokens(explained, weight).index_fill_(0, torch.arange(left, 60), -torch.inf)
    bound = torch.tensor(-0.9, dtype=torch.float64)
    ours = blocks._pick_one_by_one(points @ points.mT, explained, weight, score, bound, min(most, left))
    theirs = blocks._pick_on_gpu(points @ points.mT, explained, weight, score, bound, min(most, left))
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1])


@pytest.mark.parametrize("case", range(20))
def test_a_short_video_is_one_set(case: int) -> None:
    tokens = random_video(case, (1 + case % 4, 3, 5), 70)
    tokens = VideoTokens.from_features(tokens.features.double(), tokens.grid_thw)
    relevance = noise(case, tokens.num_tokens).double() if case % 2 else None
    whole, budget = torch.zeros(tokens.num_tokens), 1 + case % tokens.num_tokens
    expected = textbook(kernel_of(tokens.features, relevance), whole, torch.tensor([budget]))
    assert create("dpp", scope="video").assign(tokens, budget, relevance).anchor.tolist() == expected


def test_segments_are_those_of_the_ratio() -> None:
    tokens = scenes(12, 4, 5, 40)
    segment = token_segments(tokens, 1 / 3)
    quota = share_budget(30, sizes(segment, 12))
    gain, _ = DPP().rank_tokens(tokens.features, segment, quota, None)
    kept = DPP(scope="segment", temporal_segment_ratio=1 / 3).assign(tokens, 30).anchor
    assert kept.tolist() == (gain > -torch.inf).nonzero().squeeze(1).tolist()
    assert len(segment.unique()) == 4


@pytest.mark.parametrize("make", [random_video, scenes])
def test_the_determinant_is_that_of_the_exact_greedy(make: Any) -> None:
    """3,072 tokens, 12% kept: within 1% of float64's one pick after the other."""
    tokens = make(0, (12, 16, 16), 512) if make is random_video else scenes(12, 16, 16, 512)
    kernel = kernel_of(tokens.features, None)
    exact = log_det(kernel, cholesky(kernel, 368))
    assert log_det(kernel, DPP().assign(tokens, 368).anchor.tolist()) == pytest.approx(exact, rel=0.01)
    assert log_det(kernel, DPP(scope="frame").assign(tokens, 368).anchor.tolist()) < 1.1 * exact


def test_candidates_lose_little() -> None:
    tokens = scenes(64, 8, 10, 256)
    assert tokens.num_tokens > LONGEST_SEGMENT
    kernel = kernel_of(tokens.features, None)
    weight = torch.ones(tokens.num_tokens)
    exact, _ = blocks.greedy_map_by_blocks(tokens.features, 1 / tokens.features.norm(dim=1), weight, 150)
    kept = DPP().assign(tokens, 150).anchor
    assert log_det(kernel, kept.tolist()) > 1.02 * log_det(kernel, exact.tolist())


def test_all_of_a_still_picture_is_kept_once() -> None:
    """Sixty-four frames of one picture: every cell before a second copy of any."""
    picture = noise(5, 9 * 10, 128)
    features = picture.repeat(64, 1) + 0.001 * noise(6, 64 * 90, 128)
    kept = DPP().assign(VideoTokens.from_features(features, (64, 9, 10)), 90).anchor
    assert sorted((kept % 90).tolist()) == list(range(90))


@pytest.mark.parametrize(("frames", "budget", "parts"), [(600, 200, 3), (100, 4 * MOST_PICKS, 4), (40, 5, 1)])
def test_a_long_video_is_cut_into_parts(frames: int, budget: int, parts: int) -> None:
    """Every part keeps its share, so that time and memory grow with the frames."""
    tokens = mixed_video(1, (frames, 8, 10), 8)
    segment = DPP()._segments(tokens, budget)
    size = sizes(segment, parts)
    assert int(size.sum()) == tokens.num_tokens
    assert int(size.max()) < LONGEST_VIDEO + 80
    assert bool((size * budget <= (MOST_PICKS + 80) * tokens.num_tokens).all())
    kept = DPP().assign(tokens, budget).anchor
    assert torch.equal(sizes(segment[kept], parts), share_budget(budget, size))


@given(frames=st.integers(1, 70), height=st.integers(1, 9), width=st.integers(1, 9), cut=st.integers(1, 70))
def test_tiles_are_small_and_of_one_segment(frames: int, height: int, width: int, cut: int) -> None:
    tokens = random_video(0, (frames, height, width), 1)
    segment = (tokens.grid[:, 0] >= cut).long()
    found = tile(tokens, segment)
    assert int(sizes(found, int(found.max()) + 1).max()) <= 16 * 2 * 4
    for values in (segment, tokens.grid[:, 0] // 16, tokens.grid[:, 1] // 2, tokens.grid[:, 2] // 4):
        spread = torch.zeros(2, int(found.max()) + 1, dtype=torch.int64)
        low = spread[0].scatter_reduce(0, found, values, "amin", include_self=False)
        high = spread[1].scatter_reduce(0, found, values, "amax", include_self=False)
        assert torch.equal(low, high)


def test_a_scope_is_one_of_three() -> None:
    with pytest.raises(ValueError, match="scope='clip'; use 'video', 'segment' or 'frame'"):
        create("dpp", scope="clip")
