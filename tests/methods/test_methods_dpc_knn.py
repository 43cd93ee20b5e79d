"""DPC-KNN, batched, against the textbook."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import SEEDS, noise
from published import dpc_knn

from vllm_prune.bench.methods.measure import peak_on_cpu
from vllm_prune.methods import _frame_distances, _ragged, _segments
from vllm_prune.methods._dpc_knn import cluster_groups
from vllm_prune.methods._finite import FiniteFeatures
from vllm_prune.methods._segments import segment_by_clusters


def has_ties(points: torch.Tensor, k: int) -> bool:
    """Whether two points of [n, C] are as dense but for rounding, such as two that are each other's nearest with k = 2.

    Which of the two counts as denser then follows from the last bit of a product.
    """
    if k == 1:
        return False  # every point is its own nearest: all densities are exactly 1
    nearest = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").topk(
        min(k, len(points)), largest=False
    )
    return bool((nearest.values.square().mean(1).sort().values.diff() < 1e-9).any())


@given(seed=SEEDS, k=st.integers(1, 9), sizes=st.lists(st.integers(1, 12), min_size=1, max_size=5), data=st.data())
def test_equals_the_textbook_in_every_group(seed: int, k: int, sizes: list[int], data: st.DataObject) -> None:
    quotas = [data.draw(st.integers(1, size)) for size in sizes]
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    group = torch.cat((group, torch.tensor([-1, -1])))[noise(seed + 1, len(group) + 2).argsort()]
    points = noise(seed, len(group), 5).double()
    root = cluster_groups(FiniteFeatures(points), group, torch.tensor(quotas), k)
    for g, quota in enumerate(quotas):
        members = (group == g).nonzero().squeeze(1)
        if has_ties(points[members], k):
            continue
        expected = dpc_knn(points[members].tolist(), quota, k)
        assert root[members].tolist() == members[expected].tolist()
    assert (root[group < 0] == -1).all()


def test_batches_of_groups_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    group = noise(0, 200).argsort() % 9
    quota = torch.arange(1, 10)
    together = cluster_groups(FiniteFeatures(noise(1, 200, 4)), group, quota, 7)
    monkeypatch.setattr(_ragged, "_BATCH_BYTES", 1)
    assert torch.equal(cluster_groups(FiniteFeatures(noise(1, 200, 4)), group, quota, 7), together)


def test_duplicates_keep_the_earlier() -> None:
    points = torch.tensor([[5.0, 1.0], [0.0, 0.0], [5.0, 1.0], [0.0, 0.0]]) + 100
    root = cluster_groups(FiniteFeatures(points), torch.zeros(4, dtype=torch.int64), torch.tensor([2]), 2)
    assert root.tolist() == [0, 1, 0, 1]


def best_cuts(distance: list[list[float]], centres: list[int]) -> list[int]:
    cuts = []
    for left, right in zip(range(len(centres) - 1), range(1, len(centres)), strict=True):
        span = range(centres[left] + 1, centres[right] + 1)
        cost = {
            cut: sum(distance[left][t] for t in range(centres[left], cut))
            + sum(distance[right][t] for t in range(cut, centres[right]))
            for cut in span
        }
        cuts.append(min(span, key=lambda cut: (round(cost[cut], 9), cut)))
    return cuts


@given(seed=SEEDS, frames=st.integers(1, 20), data=st.data())
def test_segments_are_cut_where_distance_is_least(seed: int, frames: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, frames))
    points = noise(seed, frames, 5).double()
    segment = segment_by_clusters(points, count, 7)
    root = dpc_knn(points.tolist(), count, 7)
    centres = sorted({c for i, c in enumerate(root) if i == c})
    distance = [[math.dist(points[c].tolist(), p) for p in points.tolist()] for c in centres]
    cuts = best_cuts(distance, centres)
    assert segment.tolist() == [sum(t >= cut for cut in cuts) for t in range(frames)]


@settings(max_examples=15)
@given(seed=SEEDS, frames=st.integers(1, 40), ties=st.booleans(), data=st.data())
def test_a_long_video_is_cut_without_the_distances_of_all(
    seed: int, frames: int, ties: bool, data: st.DataObject
) -> None:
    points = noise(seed, frames, 5)
    points = points.round() if ties else points
    count = data.draw(st.integers(1, frames))
    whole = segment_by_clusters(points, count, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_segments, "_DISTANCE_BYTES", 0)
        patch.setattr(_frame_distances, "_BLOCK_BYTES", 32 * frames)
        assert torch.equal(segment_by_clusters(points, count, 4), whole)


def test_distances_of_a_long_video_take_a_fixed_amount_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    points, every = noise(0, 1024, 8), 4 * 1024**2
    monkeypatch.setattr(_segments, "_DISTANCE_BYTES", every - 1)
    monkeypatch.setattr(_frame_distances, "_BLOCK_BYTES", every // 64)
    assert peak_on_cpu(lambda: segment_by_clusters(points, 256, 7)) < every / 4
