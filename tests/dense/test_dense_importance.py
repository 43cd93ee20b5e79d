"""Importance by chunks equals a softmax written out; of equal scores the earlier token stays."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_prune.methods import attention_importance as module
from vllm_prune.methods.attention_importance import attention_importance, select_top


def naive(query, visible, key, tokens, scale, text):
    positions, heads, _ = query.shape
    shared = heads // key.shape[1]
    per_head = []
    for head in range(heads):
        weights = []
        for i in range(positions):
            seen = key[: visible[i], head // shared].double()
            weights.append(torch.softmax(seen @ query[i, head].double() * scale, dim=0)[tokens])
        stacked = torch.stack(weights)
        per_head.append({"max": stacked.amax(0), "mean": stacked.mean(0), "last": stacked[-1]}[text])
    return torch.stack(per_head).amax(0)


@pytest.mark.parametrize("text", ["max", "mean", "last"])
@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (6, 2), (4, 4), (8, 1)])
@pytest.mark.parametrize("chunk", [1, 40, 1 << 22])
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_equals_a_softmax_written_out(monkeypatch, text, heads, groups, chunk, size):
    monkeypatch.setattr(module, "_CHUNK_SCORES", chunk)
    generator = torch.Generator().manual_seed(heads * 10 + groups)
    query = size * torch.randn(5, heads, 8, generator=generator)
    key = torch.randn(40, groups, 8, generator=generator)
    visible = torch.tensor([31, 32, 36, 39, 40])
    tokens = torch.arange(7, 30)
    found = attention_importance(query, visible, key, tokens, scale=0.35, text=text)
    torch.testing.assert_close(found.double(), naive(query, visible, key, tokens, 0.35, text), atol=1e-5, rtol=1e-4)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("chunk", [1, 1 << 22])
@pytest.mark.parametrize("size", [1e-6, 1e4, 1e15])
def test_extreme_logits_give_weights(monkeypatch, chunk, size):
    monkeypatch.setattr(module, "_CHUNK_SCORES", chunk)
    query = size * torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    key = torch.tensor([[[1.0, -1.0]], [[-1.0, 1.0]], [[0.5, 0.5]]])
    found = attention_importance(query, torch.tensor([3, 3]), key, torch.tensor([0, 1, 2]), scale=1.0)
    assert torch.isfinite(found).all()
    if size > 1:
        assert found.tolist() == [1.0, 1.0, 0.0]
    else:
        torch.testing.assert_close(found, torch.full((3,), 1 / 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    query, key = torch.randn(3, 2, 8).to(dtype), torch.randn(20, 1, 8).to(dtype)
    visible, tokens = torch.tensor([18, 19, 20]), torch.arange(17)
    found = attention_importance(query, visible, key, tokens, scale=0.3)
    assert torch.equal(found, attention_importance(query.float(), visible, key.float(), tokens, scale=0.3))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.data())
def test_of_equal_values_the_earlier_stay(values, data):
    count = data.draw(st.integers(1, len(values)))
    kept = select_top(torch.tensor(values, dtype=torch.float32), count).tolist()
    ranked = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert kept == sorted(ranked[:count])
