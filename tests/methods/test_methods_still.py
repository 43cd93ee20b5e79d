"""FrameFusion and DyCoke against what their papers define, with loops in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_cases import EXTENTS, SEEDS, mixed_video, noise, random_video

from vllm_prune.methods import VideoTokens, compact, create
from vllm_prune.methods.dycoke import DyCoke
from vllm_prune.methods.framefusion import FrameFusion


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


def groups_of(slot: torch.Tensor) -> set[frozenset[int]]:
    return {frozenset((slot == k).nonzero().flatten().tolist()) for k in range(int(slot.max()) + 1)}


def fuse_frames(tokens: VideoTokens, budget: int, threshold: float, relevance: torch.Tensor) -> set[frozenset[int]]:
    """Section 4 of the paper for a given count: merge links above the threshold, then prune by importance."""
    cells = tokens.num_tokens // tokens.grid_thw[0]
    likeness = {i: cosine(tokens.features[i], tokens.features[i - cells]) for i in range(cells, tokens.num_tokens)}
    merged = sorted((i for i in likeness if likeness[i] > threshold), key=lambda i: (-likeness[i], i))
    merged = set(merged[: tokens.num_tokens - budget])
    groups: dict[int, list[int]] = {}
    root: dict[int, int] = {}
    for i in range(tokens.num_tokens):
        root[i] = root[i - cells] if i in merged else i
        groups.setdefault(root[i], []).append(i)
    importance = {r: sum(float(relevance[i]) for i in members) / len(members) for r, members in groups.items()}
    best = sorted(groups, key=lambda r: (-importance[r], r))[:budget]
    return {frozenset(groups[r]) for r in best}


@given(seed=SEEDS, grid_thw=EXTENTS, data=st.data())
def test_framefusion_equals_its_definition(seed: int, grid_thw: tuple[int, int, int], data: st.DataObject) -> None:
    tokens = random_video(seed, grid_thw, 3)
    tokens = VideoTokens.from_features(tokens.features.double(), grid_thw)
    budget = data.draw(st.integers(1, tokens.num_tokens))
    threshold = data.draw(st.sampled_from([-0.5, 0.0, 0.6]))
    relevance = noise(seed + 1, tokens.num_tokens).double()
    found = FrameFusion(threshold=threshold).assign(tokens, budget, relevance)
    assert groups_of(found.slot) == fuse_frames(tokens, budget, threshold, relevance)


def test_framefusion_without_a_relevance_merges_and_loses_nothing() -> None:
    tokens = mixed_video(1, (8, 4, 4), 16)
    whole = int((tokens.features.norm(dim=1) > 0).sum())
    assignment = FrameFusion().assign(tokens, 40)
    assert int((assignment.slot >= 0).sum()) == whole
    cell = tokens.grid[:, 1] * 4 + tokens.grid[:, 2]
    for slot in range(40):
        assert cell[assignment.slot == slot].unique().numel() == 1


def test_framefusion_on_a_still_video_keeps_one_token_a_cell() -> None:
    still = noise(0, 16, 8).repeat(6, 1)
    tokens = VideoTokens.from_features(still, (6, 4, 4))
    assignment = FrameFusion().assign(tokens, 16)
    assert assignment.anchor.tolist() == list(range(16))
    torch.testing.assert_close(compact(tokens, assignment).features, still[:16])


def test_framefusion_links_across_broken_tokens() -> None:
    features = noise(0, 4, 8).repeat(5, 1)
    features[4:8] = torch.nan
    assignment = FrameFusion().assign(VideoTokens.from_features(features, (5, 2, 2)), 4)
    assert assignment.slot.view(5, 4).tolist() == [[0, 1, 2, 3], [-1] * 4, *[[0, 1, 2, 3]] * 3]


def coke(tokens: VideoTokens, quota: list[int]) -> set[int]:
    """Section 3.2: of each window's frames 2, 3 and 4 the `quota` [T] tokens least like those of frames 1, 1 and 3."""
    cells = tokens.num_tokens // tokens.grid_thw[0]
    kept: set[int] = set()
    for frame in range(tokens.grid_thw[0]):
        before = frame - {0: 0, 1: 1, 2: 2, 3: 1}[frame % 4]
        pairs = [(frame * cells + i, before * cells + i) for i in range(cells)]
        order = sorted(pairs, key=lambda pair: (cosine(tokens.features[pair[0]], tokens.features[pair[1]]), pair[0]))
        kept |= {i for i, _ in (pairs if before == frame else order[: quota[frame]])}
    return kept


@given(seed=SEEDS, frames=st.integers(1, 9), cells=st.integers(1, 5), data=st.data())
def test_dycoke_equals_its_definition(seed: int, frames: int, cells: int, data: st.DataObject) -> None:
    tokens = random_video(seed, (frames, 1, cells))
    tokens = VideoTokens.from_features(tokens.features.double(), tokens.grid_thw)
    firsts = -(-frames // 4)
    each = data.draw(st.integers(1, cells))
    budget = firsts * cells + (frames - firsts) * each  # the same share of every other frame, as published
    assignment = DyCoke().assign(tokens, budget)
    assert set(assignment.anchor.tolist()) == coke(tokens, [each] * frames)
    assert int(assignment.slot.min()) >= 0


def test_dycoke_merges_along_its_comparisons() -> None:
    still = noise(0, 4, 8).repeat(8, 1)
    assignment = DyCoke().assign(VideoTokens.from_features(still, (8, 2, 2)), 8)
    assert assignment.slot.view(8, 4).tolist() == [[0, 1, 2, 3]] * 4 + [[4, 5, 6, 7]] * 4


@pytest.mark.parametrize("name", ["dycoke", "framefusion"])
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_broken_tokens_go_first(name: str, value: float, mean: float) -> None:
    tokens = random_video(7, (16, 4, 4), 32)
    tokens.features.add_(mean)
    broken = noise(8, tokens.num_tokens).argsort()[:25]
    tokens.features[broken] = value
    for budget in (8, 64, 231):
        assert not bool((create(name).assign(tokens, budget).slot[broken] >= 0).any())
    assert int((create(name).assign(tokens, 240).slot[broken] >= 0).sum()) == 9
