"""Methods told the vision encoder's attention, and that attention, against what papers define, in float64 loops."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_cases import EXTENTS, SEEDS, mixed_video, noise, random_video

from vllm_prune.methods import VideoTokens, create
from vllm_prune.methods._redundant_segments import cut_redundant, run_lengths
from vllm_prune.methods._share import share_budget
from vllm_prune.methods.encoder_attention import received_attention
from vllm_prune.methods.fastvid import FastVID
from vllm_prune.methods.fastvid_attention import FastVIDAttention
from vllm_prune.methods.holitom import HoliTom
from vllm_prune.methods.prumerge import PruMerge
from vllm_prune.methods.visionzip import VisionZip

NAMES = ("fastvid_attention", "holitom", "prumerge", "visionzip")


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


def groups_of(slot: torch.Tensor) -> set[frozenset[int]]:
    return {frozenset((slot == k).nonzero().flatten().tolist()) for k in range(int(slot.max()) + 1)}


def double_video(seed: int, grid_thw: tuple[int, int, int]) -> VideoTokens:
    tokens = random_video(seed, grid_thw, 4)
    return VideoTokens.from_features(tokens.features.double(), grid_thw)


def join(tokens: VideoTokens, kept: dict[int, list[int]], others: list[int], targets: list[int]) -> None:
    for i in others:
        kept[max(targets, key=lambda j: (cosine(tokens.features[i], tokens.features[j]), -j))].append(i)


def zip_frame(tokens: VideoTokens, score: list[float], members: list[int], quota: int) -> set[frozenset[int]]:
    """VisionZip, sections 3.2 and 3.3, on one frame."""
    contextual = round(quota * 10 / 64)
    ranked = sorted(members, key=lambda i: (-score[i], i))
    dominant = ranked[: quota - contextual]
    rest = sorted(set(members) - set(dominant))
    targets = [rest[i * len(rest) // contextual] for i in range(contextual)]
    slots = {i: [i] for i in (*dominant, *targets)}
    if targets:
        join(tokens, slots, [i for i in rest if i not in targets], targets)
    return {frozenset(slot) for slot in slots.values()}


@given(seed=SEEDS, frames=st.integers(1, 3), cells=st.integers(1, 24), data=st.data())
def test_visionzip_equals_its_definition(seed: int, frames: int, cells: int, data: st.DataObject) -> None:
    tokens, score = double_video(seed, (frames, 1, cells)), noise(seed + 1, frames * cells).double()
    budget = data.draw(st.integers(1, tokens.num_tokens))
    quota = share_budget(budget, torch.full((frames,), cells)).tolist()
    found = VisionZip().assign(tokens, budget, score)
    expected: set[frozenset[int]] = set()
    for frame, share in enumerate(quota):
        members = list(range(frame * cells, (frame + 1) * cells))
        expected |= zip_frame(tokens, score.tolist(), members, share) if share else set()
    assert groups_of(found.slot) == expected


def prune_frame(tokens: VideoTokens, score: list[float], members: list[int], quota: int) -> set[frozenset[int]]:
    """PruMerge+, sections 3.2 to 3.4, on one frame."""
    values = torch.tensor([score[i] for i in members]).double()
    low, high = (float(values.quantile(share)) for share in (0.25, 0.75))
    ranked = sorted(members, key=lambda i: (-score[i], i))
    outliers = [i for i in ranked if score[i] > high + 1.5 * (high - low)][:quota]
    rest = sorted(set(members) - set(outliers))
    more = quota - len(outliers)
    kept = [*outliers, *(rest[i * len(rest) // more] for i in range(more))]
    slots = {i: [i] for i in kept}
    join(tokens, slots, [i for i in members if i not in slots], kept)
    return {frozenset(slot) for slot in slots.values()}


@given(seed=SEEDS, frames=st.integers(1, 3), cells=st.integers(1, 24), data=st.data())
def test_prumerge_equals_its_definition(seed: int, frames: int, cells: int, data: st.DataObject) -> None:
    tokens = double_video(seed, (frames, 1, cells))
    score = noise(seed + 1, frames * cells).double().pow(3)  # heavy tails: outliers occur
    budget = data.draw(st.integers(1, tokens.num_tokens))
    quota = share_budget(budget, torch.full((frames,), cells)).tolist()
    expected: set[frozenset[int]] = set()
    for frame, share in enumerate(quota):
        members = list(range(frame * cells, (frame + 1) * cells))
        expected |= prune_frame(tokens, score.tolist(), members, share) if share else set()
    assert groups_of(PruMerge().assign(tokens, budget, score).slot) == expected


@given(seed=SEEDS, grid_thw=EXTENTS, data=st.data())
def test_fastvid_keeps_what_is_looked_at_and_merges_the_rest(
    seed: int, grid_thw: tuple[int, int, int], data: st.DataObject
) -> None:
    tokens, score = double_video(seed, grid_thw), noise(seed + 1, grid_thw[0] * grid_thw[1] * grid_thw[2]).double()
    budget = data.draw(st.integers(1, tokens.num_tokens))
    frames, cells = grid_thw[0], grid_thw[1] * grid_thw[2]
    salient = budget - max(1, round(0.4 * budget))
    quota = share_budget(salient, torch.full((frames,), cells)).tolist()
    kept: list[int] = []
    for frame, share in enumerate(quota):
        kept += sorted(range(frame * cells, (frame + 1) * cells), key=lambda i: (-float(score[i]), i))[:share]
    slot = FastVIDAttention().assign(tokens, budget, score).slot
    found = groups_of(slot)
    assert {frozenset([i]) for i in kept} <= found
    rest = VideoTokens.from_features(tokens.features.index_fill(0, torch.tensor(kept, dtype=torch.int64), 0), grid_thw)
    merged = FastVID().assign(rest, budget - salient).slot
    assert found - {frozenset([i]) for i in kept} == groups_of(merged)


def all_cuts(frames: int) -> list[list[tuple[int, int]]]:
    """Every way to cut a video: (first, last) frame of each segment."""
    found = []
    for count in range(frames):
        for cuts in itertools.combinations(range(1, frames), count):
            edges = [0, *cuts, frames]
            found.append([(a, b - 1) for a, b in itertools.pairwise(edges)])
    return found


@given(seed=SEEDS, frames=st.integers(1, 8), cells=st.integers(1, 5))
def test_holitom_cuts_where_most_is_redundant(seed: int, frames: int, cells: int) -> None:
    repeats = noise(seed, frames, cells) > -0.4
    segment, first, last = cut_redundant(run_lengths(repeats))

    def redundant(cut: list[tuple[int, int]]) -> int:
        return sum((b - a) * int(repeats[a + 1 : b + 1].all(0).sum()) for a, b in cut)

    assert redundant(list(zip(first.tolist(), last.tolist(), strict=True))) == max(map(redundant, all_cuts(frames)))
    assert segment.tolist() == [s for s in range(len(first)) for _ in range(int(first[s]), int(last[s]) + 1)]


def test_holitom_cuts_long_videos() -> None:
    segment, first, last = cut_redundant(run_lengths(torch.ones(200, 3, dtype=torch.bool)))
    assert int((last - first).max()) < 64
    assert segment.unique().numel() == 4  # as few as hold 200 frames


def test_holitom_merges_what_stands_still_and_keeps_what_is_looked_at() -> None:
    features = noise(0, 16, 32).repeat(8, 1).view(8, 16, 32)
    features[:, :4] = noise(1, 8, 4, 32)  # four cells change in every frame
    tokens = VideoTokens.from_features(features.flatten(0, 1), (8, 4, 4))
    attention = torch.zeros(8, 16)
    attention[:, 1] = 1.0
    whole = HoliTom().assign(tokens, 12 + 8 * 4, attention.flatten())
    assert (whole.slot.view(8, 16)[:, 4:] == whole.slot.view(8, 16)[:1, 4:]).all()
    half = HoliTom().assign(tokens, (12 + 8 * 4) // 4, attention.flatten())  # 3 of the still ones, 1 of each frame's
    assert half.slot.view(8, 16)[:, 4:].unique().numel() == 3
    assert ((half.slot.view(8, 16)[:, :4] >= 0) == (attention[:, :4] > 0)).all()


@given(seed=SEEDS, grid_thw=EXTENTS, data=st.data())
def test_holitom_keeps_cells_apart_where_the_budget_has_room(
    seed: int, grid_thw: tuple[int, int, int], data: st.DataObject
) -> None:
    tokens = mixed_video(seed, grid_thw, 16)
    score = noise(seed + 5, tokens.num_tokens)
    usable = (tokens.features.norm(dim=1) > 0).nonzero().squeeze(1)
    if len(usable):
        assert torch.equal(HoliTom().assign(tokens, len(usable), score).anchor, usable)
    budget = data.draw(st.integers(1, tokens.num_tokens))
    assert HoliTom().assign(tokens, budget, score).num_slots == budget


@given(seed=SEEDS, lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), heads=st.integers(1, 3))
def test_received_attention_is_the_column_mean(seed: int, lengths: list[int], heads: int) -> None:
    total = sum(lengths)
    query, key = noise(seed, total, heads, 8), noise(seed + 1, total, heads, 8)
    bounds = [0, *itertools.accumulate(lengths)]
    found = received_attention(query, key, bounds, 0.3)
    for start, stop in itertools.pairwise(bounds):
        q, k = (rows[start:stop].double().transpose(0, 1) for rows in (query, key))
        weights = torch.softmax(q @ k.mT * 0.3, dim=2)  # [H, n, n]
        torch.testing.assert_close(
            found[start:stop].double(), weights.mean(0).mean(0) * (stop - start), rtol=1e-5, atol=1e-6
        )


def test_received_attention_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = noise(0, 90, 2, 8), noise(1, 90, 2, 8)
    bounds = [0, 8, 16, 24, 24, 90]
    whole = received_attention(query, key, bounds, 0.3)
    monkeypatch.setattr("vllm_prune.methods.encoder_attention._WEIGHT_BYTES", 2000)
    torch.testing.assert_close(received_attention(query, key, bounds, 0.3), whole)


@pytest.mark.parametrize("name", NAMES)
def test_no_attention_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"relevance=None; {name} needs the attention that each token receives"):
        create(name).assign(random_video(0, (2, 2, 2)), 3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_broken_tokens_come_last(name: str, value: float) -> None:
    tokens, score = random_video(7, (16, 4, 4), 32), noise(9, 256)
    broken = noise(8, tokens.num_tokens).argsort()[:25]
    tokens.features[broken] = value
    score[broken] = 9.0
    for budget in (8, 64, 231):
        assert not bool((create(name).assign(tokens, budget, score).slot[broken] >= 0).any())
    assert int((create(name).assign(tokens, 240, score).slot[broken] >= 0).sum()) == 9
