from __future__ import annotations

import pytest
import torch
from method_cases import noise, random_video

from vllm_prune.methods import relevance
from vllm_prune.methods.dpp import DPP
from vllm_prune.methods.relevance import relevance_to_text


def test_it_is_a_mean_of_cosines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relevance, "_ROWS_AT_ONCE", 3)
    features, text = noise(0, 10, 8), noise(1, 4, 8)
    expected = torch.nn.functional.cosine_similarity(features[:, None], text[None], dim=2).mean(1)
    torch.testing.assert_close(relevance_to_text(features, text), expected)


def test_broken_tokens_are_like_no_text() -> None:
    features = noise(2, 3, 8)
    features[1, 0] = float("nan")
    features[2] = 0
    found = relevance_to_text(features.to(torch.bfloat16), noise(3, 2, 8))
    assert found[0] != 0
    assert found[1:].tolist() == [0, 0]


@pytest.mark.parametrize("shape", [(0, 8), (8,), (2, 7)])
def test_a_text_that_does_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="text: shape"):
        relevance_to_text(noise(0, 3, 8), torch.zeros(shape))


def test_a_dpp_conditioned_on_a_text_prefers_what_it_names() -> None:
    tokens = random_video(4, (4, 3, 3), 32)
    named = torch.tensor([2, 11, 20, 29])
    text = tokens.features[named] + 0.1 * noise(5, 4, 32)
    kept = DPP().assign(tokens, 12, relevance_to_text(tokens.features, text)).anchor
    assert set(named.tolist()) <= set(kept.tolist())
