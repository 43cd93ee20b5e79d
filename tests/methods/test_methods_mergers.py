"""ToMe, FastVID and FlashVID against plain loops, and on videos made to fit them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_cases import SEEDS, mixed_video, noise, random_video

from vllm_prune.methods import VideoTokens, _dpc_knn, _frame_products, _kernels, _ragged, compact, create
from vllm_prune.methods._share import share_budget
from vllm_prune.methods.fastvid import FastVID, cut_at_transitions, divide
from vllm_prune.methods.flashvid import FlashVID, follow, share_frames, strongest
from vllm_prune.methods.merge_frames import merge_frames
from vllm_prune.methods.tome import ToMe


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


def tome_of_frame(features: torch.Tensor, quota: int) -> list[list[int]]:
    """Bipartite soft matching of one frame with loops: the clusters that remain."""
    clusters = [[i] for i in range(len(features))]
    while len(clusters) > quota:
        sums = [features[c].double().sum(0) for c in clusters]
        odd = range(1, len(clusters), 2)
        best = {i: max(odd, key=lambda j: (cosine(sums[i], sums[j]), -j)) for i in range(0, len(clusters), 2)}
        order = sorted(best, key=lambda i: (-cosine(sums[i], sums[best[i]]), i))
        source = order[: min(len(clusters) - quota, len(clusters) // 2)]
        for i in source:
            clusters[best[i]] = clusters[best[i]] + clusters[i]
        clusters = [c for i, c in enumerate(clusters) if i not in source]
    return clusters


@given(seed=SEEDS, cells=st.integers(1, 9), frames=st.integers(1, 3), data=st.data())
def test_tome_equals_the_textbook(seed: int, cells: int, frames: int, data: st.DataObject) -> None:
    tokens = random_video(seed, (frames, 1, cells))
    tokens = VideoTokens.from_features(tokens.features.double(), tokens.grid_thw)
    budget = data.draw(st.integers(frames, frames * cells))
    slot = ToMe().assign(tokens, budget).slot
    quota = share_budget(budget, torch.full((frames,), cells)).tolist()
    for frame in range(frames):
        base = frame * cells
        for cluster in tome_of_frame(tokens.features[base : base + cells], quota[frame]):
            assert len({int(slot[base + i]) for i in cluster}) == 1
    assert len(slot.unique()) == budget


def test_tome_anchor_is_where_the_others_went() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [1.0, 0.1]])
    assignment = ToMe().assign(VideoTokens.from_features(features, (1, 1, 4)), 2)
    assert assignment.slot.tolist() == [1, 0, 0, 1]
    assert assignment.anchor.tolist() == [1, 3]


def test_fastvid_cuts_where_the_scene_changes() -> None:
    frames = noise(0, 3, 16).repeat_interleave(torch.tensor([4, 2, 5]), dim=0)
    assert cut_at_transitions(frames, 0.9, 1, 11).tolist() == [0] * 4 + [1] * 2 + [2] * 5
    assert cut_at_transitions(frames, -1, 2, 11).unique().numel() == 2
    assert cut_at_transitions(frames, -1, 99, 11).unique().numel() == 11
    assert cut_at_transitions(frames, 0.9, 99, 3).tolist() == [0] * 4 + [1] * 2 + [2] * 5, "the deepest cuts stay"


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), cells=st.integers(1, 6), data=st.data())
def test_fastvid_blocks_have_room(lengths: list[int], cells: int, data: st.DataObject) -> None:
    length = torch.tensor(lengths)
    budget = data.draw(st.integers(1, int(length.sum()) * cells))
    quota = share_budget(budget, length * cells)
    segment = torch.arange(len(lengths)).repeat_interleave(length)
    block, block_quota = divide(segment, length, quota, cells, data.draw(st.integers(1, 5)))
    assert block_quota.sum() == budget
    assert 1 <= block_quota.min() <= block_quota.max() <= cells
    assert block[block >= 0].unique().tolist() == list(range(len(block_quota)))
    for s, share in enumerate(quota.tolist()):
        mine = block[segment == s].unique()
        assert (mine.tolist() == [-1]) if share == 0 else int(block_quota[mine].sum()) == share


def test_fastvid_merges_into_the_most_similar_anchor_of_the_block() -> None:
    tokens = random_video(2, (12, 3, 3), 16)
    assignment = FastVID(min_segments=2).assign(tokens, 25)
    frames = tokens.grid[assignment.anchor, 0]
    for token in range(tokens.num_tokens):
        mine = int(assignment.slot[token])
        block = (frames == frames[mine]).nonzero().squeeze(1).tolist()
        best = max(cosine(tokens.features[token], tokens.features[assignment.anchor[s]]) for s in block)
        found = cosine(tokens.features[token], tokens.features[assignment.anchor[mine]])
        assert found == pytest.approx(best, abs=1e-6) or token == assignment.anchor[mine]


def moving_dot(frames: int, cells: int) -> VideoTokens:
    """Noise, with one token that moves a cell a frame."""
    features = noise(0, frames, cells, 32)
    features[torch.arange(frames), torch.arange(frames) % cells] = 5.0
    return VideoTokens.from_features(features.flatten(0, 1), (frames, 1, cells))


def test_flashvid_follows_what_moves() -> None:
    tokens = moving_dot(6, 6)
    assignment = FlashVID(diverse_ratio=0, transition_threshold=-1, min_segments=1).assign(tokens, 31)
    dot = torch.arange(6) * 6 + torch.arange(6)
    assert assignment.slot[dot].unique().numel() == 1
    torch.testing.assert_close(compact(tokens, assignment).features[assignment.slot[0]], tokens.features[0])
    assert tokens.grid[assignment.anchor[assignment.slot[0]]].tolist() == [0, 0, 0]


def test_flashvid_keeps_diverse_tokens_as_they_are() -> None:
    tokens = random_video(1, (5, 3, 3), 16)
    sizes = FlashVID(diverse_ratio=0.5).assign(tokens, 20).slot.bincount()
    assert (sizes == 1).sum() >= 10
    dropped = FlashVID(diverse_ratio=1).assign(tokens, 20)
    assert (dropped.slot >= 0).sum() == 20


@given(seed=SEEDS, size=st.integers(1, 60), data=st.data())
def test_trees_are_what_the_strongest_links_leave(seed: int, size: int, data: st.DataObject) -> None:
    parent = torch.tensor([data.draw(st.integers(0, max(0, i - 1))) for i in range(size)])
    group = torch.where(parent == torch.arange(size), -1, torch.arange(size) % 3)
    most = torch.tensor([data.draw(st.integers(0, size)) for _ in range(3)])
    score = noise(seed, size)
    holds = strongest(score, group, most)
    for g, allowed in enumerate(most.tolist()):
        mine = (group == g).nonzero().squeeze(1).tolist()
        best = sorted(mine, key=lambda i: (-float(score[i]), i))[:allowed]
        assert (holds & (group == g)).nonzero().squeeze(1).tolist() == sorted(best)
    root = follow(torch.where(holds, parent, torch.arange(size)))
    assert root.unique().numel() == size - holds.sum()
    assert torch.equal(root[root], root)


@given(trees=st.lists(st.integers(0, 9), min_size=1, max_size=12), data=st.data())
def test_frames_share_what_their_segment_has(trees: list[int], data: st.DataObject) -> None:
    size = torch.tensor(trees)
    segment = torch.tensor([0] + [data.draw(st.integers(0, 1)) for _ in trees[1:]]).cumsum(0)
    in_segment = torch.zeros(int(segment[-1]) + 1, dtype=torch.long).index_add_(0, segment, size)
    share = torch.tensor([data.draw(st.integers(0, int(count))) for count in in_segment])
    quota, too_few = share_frames(size, segment, share)
    assert (quota <= size).all()
    assert ((quota >= 1) == (size > 0)).all()
    for s, slots in enumerate(share.tolist()):
        mine = quota[segment == s]
        assert bool(too_few[s]) == (slots < int((size[segment == s] > 0).sum()))
        assert int(mine.sum()) == max(slots, int((size[segment == s] > 0).sum()))


@pytest.mark.parametrize("name", ["dpp", "fastvid", "flashvid", "prunevid", "tome"])
def test_pieces_do_not_change_the_result(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = mixed_video(4, (9, 3, 3), 16)
    whole = create(name).assign(tokens, 30)
    monkeypatch.setattr(_ragged, "_BATCH_BYTES", 1)
    monkeypatch.setattr(_kernels, "_COPY_BYTES", 1)
    monkeypatch.setattr(_frame_products, "_PIECE_BYTES", 1)
    monkeypatch.setattr(_frame_products, "_KEPT_BYTES", 0)
    assert torch.equal(create(name).assign(tokens, 30).slot, whole.slot)


@given(seed=SEEDS, frames=st.integers(2, 12), cells=st.integers(1, 9), data=st.data())
def test_fewer_tokens_than_frames_never_compare_a_whole_video(seed, frames, cells, data):
    tokens = random_video(seed, (frames, 1, cells))
    budget = data.draw(st.integers(1, frames - 1))
    compared: list[int] = []
    distances = _dpc_knn.squared_distances

    def counting(points, valid):
        compared.append(points.shape[1])
        return distances(points, valid)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_dpc_knn, "squared_distances", counting)
        found = merge_frames(tokens, budget, cluster_ratio=0.5)
    assert len(found.anchor) == budget
    assert found.slot.min() == 0
    assert torch.equal(found.slot[found.anchor], torch.arange(budget))
    assert max(compared) <= max(frames, cells)


@pytest.mark.parametrize("keep", [0.05, 0.1])
def test_flashvid_does_not_collapse_a_short_video(keep: float) -> None:
    """Still cells with noise: no slot swallows them."""
    still = noise(0, 1, 196, 64) + 1.5 * noise(1, 64)
    tokens = VideoTokens.from_features((still + 0.3 * noise(2, 8, 196, 64)).flatten(0, 1), (8, 14, 14))
    assignment = FlashVID().assign(tokens, int(keep * tokens.num_tokens))
    assert assignment.slot.bincount().max() < 0.2 * tokens.num_tokens
