"""Choosing by a question before the language model: relevance, and the conditional DPP that takes it as it is."""

from __future__ import annotations

import pytest
import torch
from dpp_reference import cholesky
from hypothesis import given
from hypothesis import strategies as st
from method_cases import noise

from vllm_prune.methods.base import VideoTokens
from vllm_prune.methods.question import (
    choose_diverse,
    choose_most_relevant,
    similarity_to_text,
    weigh_log_relevance,
    weigh_similarity,
)

GRID = (4, 3, 3)


def video(seed: int, channels: int = 32) -> VideoTokens:
    return VideoTokens.from_features(noise(seed, 36, channels), GRID)


@given(st.integers(0, 1000), st.integers(1, 35), st.floats(0, 16))
def test_the_choice_is_the_textbooks(seed: int, count: int, exponent: float) -> None:
    tokens, score = video(seed, 48), 3 * noise(seed + 1, 36, 1)[:, 0]
    relevance = (exponent * (score - score.max()).double()).exp().clamp(min=1e-3)
    units = torch.nn.functional.normalize(tokens.features.double(), dim=1)
    kernel = relevance[:, None] * (units @ units.T) * relevance
    found = choose_diverse(tokens, count, weigh_log_relevance(score, exponent), "video")
    picked = sorted(cholesky(kernel, count))
    log_det = [torch.linalg.slogdet(kernel[i][:, i]).logabsdet for i in (found, torch.tensor(picked))]
    assert len(found) == count == len(set(found.tolist()))
    torch.testing.assert_close(log_det[0], log_det[1], atol=0.05, rtol=0.01)


def test_an_exponent_of_0_asks_nothing() -> None:
    tokens, score = video(0), noise(1, 36, 1)[:, 0]
    asked = choose_diverse(tokens, 9, weigh_log_relevance(score, 0.0), "video")
    assert asked.tolist() == choose_diverse(tokens, 9, torch.ones(36), "video").tolist()
    assert weigh_similarity(score, 0.0, tokens.features).tolist() == [1.0] * 36


@pytest.mark.parametrize("scope", ["video", "segment", "frame"])
def test_relevance_draws_the_choice(scope: str) -> None:
    tokens, score = video(2), torch.zeros(36)
    score[::4] = 40.0
    wanted = set(range(0, 36, 4))
    for chosen in (
        choose_most_relevant(tokens, 8, score, scope),
        choose_diverse(tokens, 8, weigh_log_relevance(score, 1.0), scope),
    ):
        assert set(chosen.tolist()) <= wanted
        assert chosen.tolist() == sorted(chosen.tolist())


def test_broken_scores_come_last() -> None:
    score = torch.arange(36.0)
    score[[35, 34, 33]] = torch.tensor([float("nan"), float("-inf"), float("nan")])
    weight = weigh_log_relevance(score, 0.5)
    assert weight[33:].tolist() == [weight[0].item()] * 3
    assert weight.amax() == weight[32] == 1
    assert choose_most_relevant(video(3), 3, score, "video").tolist() == [30, 31, 32]
    assert weigh_log_relevance(torch.full((4,), float("nan")), 1.0).tolist() == [1.0] * 4


@pytest.mark.parametrize("pieces", [1, 7, 1 << 22])
def test_similarity_by_the_best_word_in_pieces(monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    monkeypatch.setattr("vllm_prune.methods.question._PRODUCTS_AT_ONCE", pieces)
    features, text = noise(4, 36, 8), noise(5, 5, 8)
    expected = torch.nn.functional.cosine_similarity(features[:, None], text[None], dim=2)
    torch.testing.assert_close(similarity_to_text(features, text, "max"), expected.amax(1))
    torch.testing.assert_close(similarity_to_text(features, text, "mean"), expected.mean(1))
