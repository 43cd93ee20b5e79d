from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_cases import EXTENTS, SEEDS, mixed_video, noise, random_video

from vllm_prune.methods import VideoTokens, _prunevid_plan, compact
from vllm_prune.methods._ragged import batches
from vllm_prune.methods._share import share_budget
from vllm_prune.methods.prunevid import PruneVid


def scenes(seed: int, still: list[bool], lengths: list[int]) -> VideoTokens:
    """Scenes of `lengths` frames; in each, the cells of `still` repeat and the others are noise."""
    mask = torch.tensor(still)
    parts = []
    for index, length in enumerate(lengths):
        background = noise(seed + 100 * index, 1, len(still), 16)
        moving = noise(seed + 100 * index + 1, length, len(still), 16)
        parts.append(torch.where(mask[:, None], background, moving))
    return VideoTokens.from_features(torch.cat(parts).flatten(0, 1), (sum(lengths), 1, len(still)))


def test_a_still_video_is_one_static_frame_per_segment() -> None:
    tokens = VideoTokens.from_features(noise(0, 1, 6, 8).expand(8, 6, 8).reshape(48, 8), (8, 2, 3))
    plan = PruneVid(temporal_segment_ratio=0.25).plan(tokens)
    assert plan.static[plan.segment.bincount() > 1].all()
    merged = compact(tokens, PruneVid(temporal_segment_ratio=0.1).assign(tokens, 6))
    torch.testing.assert_close(merged.features, tokens.features[:6])
    assert (merged.grid[:, 0] == 0).all()


def test_segments_are_the_scenes() -> None:
    tokens = scenes(1, [True] * 6 + [False], [5, 3, 8])
    plan = PruneVid(temporal_segment_ratio=3 / 16).plan(tokens)
    assert plan.segment.tolist() == [0] * 5 + [1] * 3 + [2] * 8


def test_static_cells_are_those_that_stand_still() -> None:
    still = [True, True, False, True, False, True]
    plan = PruneVid(temporal_segment_ratio=2 / 12).plan(scenes(2, still, [6, 6]))
    assert plan.static.tolist() == [still, still]
    assert plan.group_sizes.tolist() == [4, 4] + [2] * 12


def test_natural_budget_follows_the_paper() -> None:
    tokens = scenes(3, [True] * 20 + [False] * 4, [6, 6])
    method = PruneVid(temporal_segment_ratio=2 / 12, cluster_ratio=0.3)
    assert method.natural_budget(tokens) == 2 * int(20 * 0.3) + 12 * 4
    assignment = method.assign(tokens, method.natural_budget(tokens))
    dynamic = tokens.grid[:, 2] >= 20
    assert assignment.slot[dynamic].unique().numel() == 48, "small groups stay whole"


def test_a_budget_below_the_natural_one_shrinks_every_group() -> None:
    tokens = scenes(3, [True] * 20 + [False] * 4, [6, 6])
    method = PruneVid(temporal_segment_ratio=2 / 12)
    frames = compact(tokens, method.assign(tokens, 30)).grid[:, 0]
    assert frames.unique().numel() == 12


def test_a_budget_above_the_merged_video_gives_back_the_least_similar_cells() -> None:
    tokens = scenes(4, [True, True, False], [6])
    features = tokens.features.clone().view(6, 3, 16)
    features[:, 1] += 0.1 * noise(5, 6, 16)
    tokens = VideoTokens.from_features(features.flatten(0, 1), (6, 1, 3))
    method = PruneVid(temporal_segment_ratio=0.1)
    assert int(method.plan(tokens).group_sizes.sum()) == 8
    slot = method.assign(tokens, 9).slot.view(6, 3)
    assert slot[:, 0].unique().numel() == 1
    assert slot[:, 1].unique().numel() > 1


def test_fewer_slots_than_groups_merge_whole_groups() -> None:
    tokens = scenes(6, [False] * 4, [4, 4])
    assignment = PruneVid().assign(tokens, 3)
    frames_of_slot = [tokens.grid[assignment.slot == s, 0].unique() for s in range(3)]
    assert (assignment.slot >= 0).all()
    assert sum(len(frames) for frames in frames_of_slot) == 8


def cell_means(measured: _prunevid_plan.Measure) -> torch.Tensor:
    """[H*W, S, C]: the mean of each cell over each segment."""
    segments, cells = measured.similarity.shape
    means = torch.empty(segments, cells, measured.features.channels, dtype=measured.features.dtype)
    for batch in batches(torch.arange(segments).repeat_interleave(cells), segments, measured.features.channels):
        means[batch.group] = _prunevid_plan.CellMeans(measured).members(batch)
    return means.transpose(0, 1)


def mean_cosine(vectors: torch.Tensor) -> float:
    units = torch.nn.functional.normalize(vectors, dim=1)
    pairs = ~torch.eye(len(units), dtype=torch.bool)
    return float((units @ units.T)[pairs].mean())


@given(seed=SEEDS, grid_thw=EXTENTS)
def test_static_is_a_mean_of_pairwise_cosines(seed: int, grid_thw: tuple[int, int, int]) -> None:
    tokens = random_video(seed, grid_thw)
    tokens = VideoTokens.from_features(tokens.features.double() + 1, grid_thw)
    tokens.features[::5] = 0
    measured = _prunevid_plan.measure(tokens, max(1, grid_thw[0] // 2), 7, 0.8)
    video = tokens.features.view(grid_thw[0], -1, 6)
    cell_mean = cell_means(measured)
    for s, row in enumerate(measured.similarity):
        part = video[measured.segment == s]
        torch.testing.assert_close(cell_mean[:, s], part.mean(0))
        expected = [mean_cosine(part[:, c]) if len(part) > 1 else -torch.inf for c in range(len(row))]
        torch.testing.assert_close(row, torch.tensor(expected).double())


def test_long_videos_are_measured_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = mixed_video(7, (40, 2, 2))
    whole = _prunevid_plan.measure(tokens, 10, 7, 0.8)
    means = cell_means(whole)
    monkeypatch.setattr(_prunevid_plan, "_FRAMES_AT_ONCE", 1)
    runs = _prunevid_plan.measure(tokens, 10, 7, 0.8)
    torch.testing.assert_close(runs.similarity, whole.similarity)
    torch.testing.assert_close(cell_means(runs), means)


def test_only_an_unpruned_video_has_frames_to_compare() -> None:
    tokens = random_video(0, (4, 2, 2))
    part = VideoTokens(tokens.features[1:], tokens.grid[1:], tokens.grid_thw)
    with pytest.raises(ValueError, match=r"15 tokens for grid_thw.*prunevid needs the unpruned video"):
        PruneVid().assign(part, 3)


def test_a_small_budget_is_spread_over_time() -> None:
    assert share_budget(3, torch.full((9,), 5)).nonzero().squeeze(1).tolist() == [1, 4, 7]


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12), data=st.data())
def test_shares_are_exact_and_fair(sizes: list[int], data: st.DataObject) -> None:
    budget = data.draw(st.integers(0, sum(sizes)))
    quota = share_budget(budget, torch.tensor(sizes)).tolist()
    assert sum(quota) == budget
    assert all(q <= size for q, size in zip(quota, sizes, strict=True))
    if budget >= sum(size > 0 for size in sizes):
        assert all(q >= 1 for q, size in zip(quota, sizes, strict=True) if size)
        scale = max(((q - 1) / size for q, size in zip(quota, sizes, strict=True) if size), default=0)
        assert all(q + 1 >= scale * size for q, size in zip(quota, sizes, strict=True)), "no group is passed over"


def still_scenes(seed: int, lengths: list[int], strength: float = 0.1) -> VideoTokens:
    """Scenes in which nothing but noise changes, 14 x 14 cells, with a common component."""
    scene = noise(seed, len(lengths), 196, 32) + noise(seed + 1, 32)
    video = scene.repeat_interleave(torch.tensor(lengths), dim=0)
    video = video + strength * noise(seed + 2, *video.shape)
    return VideoTokens.from_features(video.flatten(0, 1), (sum(lengths), 14, 14))


@pytest.mark.parametrize("frames", [8, 32, 64])
def test_one_still_scene_is_one_segment_however_long(frames: int) -> None:
    tokens = still_scenes(0, [frames])
    assert PruneVid().natural_budget(tokens) == 98
    assert PruneVid().plan(tokens).static.all()


@pytest.mark.parametrize("seed", range(10))
def test_cuts_between_still_scenes_are_found(seed: int) -> None:
    tokens = still_scenes(10 * seed, [9 + seed % 4, 5 + seed, 18 - seed])
    segment = PruneVid().plan(tokens).segment
    cuts = set((segment.diff().nonzero().flatten() + 1).tolist())
    assert {9 + seed % 4, 14 + seed % 4 + seed} <= cuts
    assert len(cuts) <= 3


def test_a_scene_that_drifts_is_cut_all_the_same() -> None:
    turn = torch.linspace(0, 2, 32)[:, None, None]
    video = turn.cos() * noise(0, 1, 196, 32) + turn.sin() * noise(1, 1, 196, 32)
    plan = PruneVid().plan(VideoTokens.from_features(video.flatten(0, 1), (32, 14, 14)))
    assert plan.segment[-1] >= 3
    assert plan.static.all(), "so slowly that cells stand still within a segment"


@given(seed=SEEDS, frames=st.integers(2, 16))
def test_joined_segments_measure_as_if_measured_whole(seed: int, frames: int) -> None:
    tokens = VideoTokens.from_features(
        (noise(seed, 1, 9, 16) + 0.05 * noise(seed + 1, frames, 9, 16)).flatten(0, 1), (frames, 3, 3)
    )
    measured = _prunevid_plan.measure(tokens, max(1, frames // 3), 7, 0.8)
    video = tokens.features.double().view(frames, 9, 16)
    assert measured.ends[-1] == frames
    assert torch.equal(measured.segment_length.cumsum(0), torch.tensor(measured.ends))
    for s, row in enumerate(measured.similarity):
        part = video[measured.segment == s]
        expected = [mean_cosine(part[:, c]) if len(part) > 1 else -torch.inf for c in range(9)]
        torch.testing.assert_close(row.double(), torch.tensor(expected).double(), atol=1e-5, rtol=0)
