"""Methods against the definitions of their papers, in float64 (`published.py`)."""

from __future__ import annotations

import itertools

import published
import published_vidcom2
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_cases import SEEDS, noise

from vllm_prune.methods import Assignment, VideoTokens, create
from vllm_prune.methods._redundant_segments import cut_redundant, run_lengths
from vllm_prune.methods._share import share_budget
from vllm_prune.methods.fastvid import divide
from vllm_prune.methods.prunevid import PruneVid

EXTENTS = st.tuples(st.integers(1, 7), st.integers(1, 3), st.integers(1, 3)).filter(
    lambda extent: extent[1] * extent[2] != 2
)
"""Not two cells: each is as much like the other as the other is like it, and rounding decides."""


def scenes(seed: int, grid_thw: tuple[int, int, int], channels: int = 8) -> VideoTokens:
    """Float64 tokens with a common component; two scenes, each still but for noise, and some cells that change."""
    frames, height, width = grid_thw
    cells = height * width
    still = noise(seed, 2, cells, channels).double()[(torch.arange(frames) * 2) // frames]
    moving = noise(seed + 1, frames, cells, channels).double()
    strength = torch.where(noise(seed + 2, cells) > 0.5, 1.0, 0.2)[:, None]
    features = still + strength * moving + noise(seed + 3, channels).double()
    return VideoTokens.from_features(features.flatten(0, 1), grid_thw)


def as_lists(tokens: VideoTokens) -> list[list[list[float]]]:
    return tokens.features.view(tokens.grid_thw[0], -1, tokens.features.shape[1]).tolist()


def roots(assignment: Assignment) -> list[int]:
    """The token whose slot each token joins, -1 for none."""
    return torch.where(assignment.slot < 0, -1, assignment.anchor[assignment.slot]).tolist()


@given(seed=SEEDS, grid_thw=EXTENTS, data=st.data())
def test_flashvid(seed: int, grid_thw: tuple[int, int, int], data: st.DataObject) -> None:
    tokens = scenes(seed, grid_thw)
    frames, cells = grid_thw[0], tokens.num_tokens // grid_thw[0]
    budget = data.draw(st.integers(1, tokens.num_tokens))
    ratio = data.draw(st.sampled_from([0.0, 0.3, 0.7]))
    min_segments = data.draw(st.integers(1, 4))
    video, diverse = as_lists(tokens), int(ratio * budget)
    picks = share_budget(diverse, torch.full((frames,), cells)).tolist()
    segment = published.dyseg(video, 0.9, min_segments, budget - diverse)
    left = [sum(cells - picks[t] for t in range(frames) if segment[t] == s) for s in range(segment[-1] + 1)]
    shares = share_budget(budget - diverse, torch.tensor(left)).tolist()
    expected = published.flashvid(video, picks, segment, shares, link_threshold=0.8)
    method = create("flashvid", diverse_ratio=ratio, min_segments=min_segments)
    assert roots(method.assign(tokens, budget)) == expected


def test_flashvid_on_a_longer_video() -> None:
    tokens = scenes(5, (12, 4, 4), 16)
    video = as_lists(tokens)
    segment = published.dyseg(video, 0.9, 2, 20)
    left = [sum(16 - 2 for t in range(12) if segment[t] == s) for s in range(segment[-1] + 1)]
    shares = share_budget(24, torch.tensor(left)).tolist()
    expected = published.flashvid(video, [2] * 12, segment, shares, link_threshold=0.8)
    assert roots(create("flashvid", diverse_ratio=0.5).assign(tokens, 48)) == expected
    assert len({tuple(sorted(i for i, r in enumerate(expected) if r == root)) for root in expected}) == 48


@given(seed=SEEDS, grid_thw=EXTENTS, data=st.data())
def test_fastvid(seed: int, grid_thw: tuple[int, int, int], data: st.DataObject) -> None:
    tokens = scenes(seed, grid_thw)
    frames, cells = grid_thw[0], tokens.num_tokens // grid_thw[0]
    budget, min_segments = data.draw(st.integers(1, tokens.num_tokens)), data.draw(st.integers(1, 4))
    video = as_lists(tokens)
    segment = torch.tensor(published.dyseg(video, 0.9, min_segments, budget))
    length = segment.bincount()
    block, quota = divide(segment, length, share_budget(budget, length * cells), cells, 4)
    expected = published.fastvid(video, block.tolist(), quota.tolist(), k=4)
    assert roots(create("fastvid", min_segments=min_segments).assign(tokens, budget)) == expected
    assert len(block) == frames


@given(seed=SEEDS, grid_thw=EXTENTS, data=st.data())
def test_evs(seed: int, grid_thw: tuple[int, int, int], data: st.DataObject) -> None:
    tokens = scenes(seed, grid_thw)
    budget = data.draw(st.integers(1, tokens.num_tokens))
    assert create("evs").assign(tokens, budget).anchor.tolist() == published.evs(as_lists(tokens), budget)


@given(seed=SEEDS, grid_thw=EXTENTS, data=st.data())
def test_prunevid(seed: int, grid_thw: tuple[int, int, int], data: st.DataObject) -> None:
    tokens = scenes(seed, grid_thw)
    method = PruneVid()
    plan, video = method.plan(tokens), as_lists(tokens)
    segment = plan.segment.tolist()
    assert plan.static.tolist() == published.prunevid_static(video, segment, method.tau)
    size = plan.group_sizes
    least, most = int((size > 0).sum()), int(size.sum())
    budget = data.draw(st.integers(least, most))
    natural = torch.where(size <= 14, size, size // 2).maximum((size > 0).long())
    whole = torch.where(size <= 14, size, 0) if int(natural.sum()) <= budget else torch.zeros_like(size)
    quotas = (whole + share_budget(budget - int(whole.sum()), size - whole)).tolist()
    expected = published.prunevid(video, segment, plan.static.tolist(), quotas, method.k)
    assert roots(method.assign(tokens, budget)) == expected


@given(seed=SEEDS, grid_thw=EXTENTS.filter(lambda extent: extent != (2, 1, 1)), data=st.data())
def test_vidcom2(seed: int, grid_thw: tuple[int, int, int], data: st.DataObject) -> None:
    tokens = scenes(seed, grid_thw)
    budget = data.draw(st.integers(1, tokens.num_tokens))
    expected = published_vidcom2.choose(as_lists(tokens), budget)
    assert create("vidcom2").assign(tokens, budget).anchor.tolist() == expected


@given(seed=SEEDS, grid_thw=EXTENTS, data=st.data())
def test_holitom(seed: int, grid_thw: tuple[int, int, int], data: st.DataObject) -> None:
    """Up to what merging over time leaves; the cuts themselves are checked by trying all of them elsewhere."""
    tokens, video = scenes(seed, grid_thw), as_lists(scenes(seed, grid_thw))
    score = noise(seed + 9, tokens.num_tokens).double()
    like = [[published.cosine(a, b) > 0.8 for a, b in zip(*pair, strict=True)] for pair in itertools.pairwise(video)]
    repeats = torch.tensor([[False] * len(video[0]), *like])
    segment = cut_redundant(run_lengths(repeats))[0].tolist()
    redundant = published.holitom_redundant(video, segment, 0.8)
    others = [sum(not still for still in redundant[s]) for s in segment]
    size = torch.tensor([*map(sum, redundant), *others])
    budget = data.draw(st.integers(1, int(size.sum())))
    quotas = share_budget(budget, size).tolist()
    expected = published.holitom(video, score.tolist(), segment, redundant, quotas, k=7)
    assert roots(create("holitom").assign(tokens, budget, relevance=score)) == expected
