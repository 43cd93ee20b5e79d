"""Top-k, DART and the merging of dropped tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_cases import SEEDS, assign, mixed_video, noise, random_video

from vllm_prune.methods import VideoTokens, compact, create, merge_dropped, names
from vllm_prune.methods.dart import DART
from vllm_prune.methods.topk import TopK


def cosines(features: torch.Tensor) -> torch.Tensor:
    units = torch.nn.functional.normalize(features.double(), dim=1)
    return units @ units.T


@pytest.mark.parametrize(("scope", "expected"), [("video", [6, 7, 8]), ("frame", [2, 5, 8])])
def test_topk_by_scope(scope: str, expected: list[int]) -> None:
    tokens = random_video(0, (3, 1, 3))
    assert create("topk", scope=scope).assign(tokens, 3, torch.arange(9.0)).anchor.tolist() == expected


def test_topk_by_segment_finds_the_scenes() -> None:
    scene = noise(0, 2, 1, 16).repeat_interleave(torch.tensor([2, 6]), dim=0).expand(8, 4, 16)
    tokens = VideoTokens.from_features(scene.reshape(32, 16), (8, 2, 2))
    kept = TopK(scope="segment").assign(tokens, 8, torch.arange(32.0)).anchor
    assert kept.tolist() == [6, 7, 26, 27, 28, 29, 30, 31]


def test_topk_without_a_relevance_says_what_to_give() -> None:
    with pytest.raises(ValueError, match="relevance=None; topk needs a number per token"):
        TopK().assign(random_video(0, (2, 2, 2)), 3)


def test_a_relevance_of_nan_comes_last_and_ties_keep_the_earlier() -> None:
    relevance = torch.tensor([float("nan"), 2.0, 2.0, 2.0])
    assert TopK().assign(random_video(0, (4, 1, 1)), 2, relevance).anchor.tolist() == [1, 2]
    assert TopK().assign(random_video(0, (4, 1, 1)), 4, relevance).anchor.tolist() == [0, 1, 2, 3]


@given(seed=SEEDS, pivots=st.integers(1, 5), budget=st.integers(1, 36))
def test_dart_equals_the_textbook(seed: int, pivots: int, budget: int) -> None:
    tokens = random_video(seed, (4, 3, 3), 16)
    similarity = cosines(tokens.features)
    norm = tokens.features.norm(dim=1)
    kept = sorted(range(36), key=lambda i: -norm[i])[: min(pivots, budget)]
    share, left = divmod(budget - len(kept), len(kept))
    for turn, pivot in enumerate(list(kept)):
        rest = [i for i in range(36) if i not in kept]
        kept += sorted(rest, key=lambda i: float(similarity[pivot, i]))[: share + (turn < left)]
    assert DART(pivots=pivots).assign(tokens, budget).anchor.tolist() == sorted(kept)


@pytest.mark.parametrize("name", names())
def test_dropped_tokens_merge_into_the_kept_token_they_resemble(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge_dropped, "_NUMBERS_AT_ONCE", 64)
    tokens = mixed_video(3, (5, 4, 4), 12)
    plain = assign(create(name), tokens, 20)
    merged = assign(create(name, merge_dropped=True), tokens, 20)
    merged.validate()
    assert torch.equal(merged.anchor, plain.anchor)
    similarity = cosines(tokens.features)[:, plain.anchor]
    for token in (plain.slot < 0).nonzero().squeeze(1).tolist():
        if not tokens.features[token].any():
            assert merged.slot[token] == -1
        else:
            chosen = similarity[token, merged.slot[token]]
            torch.testing.assert_close(chosen, similarity[token].max(), atol=1e-6, rtol=0)
    untouched = plain.slot >= 0
    assert torch.equal(merged.slot[untouched], plain.slot[untouched])


def test_broken_tokens_never_reach_a_mean() -> None:
    tokens = random_video(1, (4, 2, 2))
    tokens.features[5] = float("nan")
    method = create("topk", merge_dropped=True)
    merged = compact(tokens, method.assign(tokens, 6, relevance=-torch.arange(16.0)))  # type: ignore[call-arg]
    assert merged.features[:5].isfinite().all()
    assert method.name == "topk+merge"


def test_merge_dropped_is_true_or_false() -> None:
    with pytest.raises(ValueError, match="merge_dropped='yes'; use True or False"):
        create("evs", merge_dropped="yes")  # type: ignore[arg-type]
