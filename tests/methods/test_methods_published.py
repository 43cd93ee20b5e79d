"""Methods against the definitions of their papers, in float64 (`published.py`)."""

from __future__ import annotations

import published
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_cases import SEEDS, noise

from vllm_prune.methods import Assignment, VideoTokens, create
from vllm_prune.methods._share import share_budget

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
    assert roots(create("flashvid").assign(tokens, 48)) == expected
    assert len({tuple(sorted(i for i, r in enumerate(expected) if r == root)) for root in expected}) == 48
