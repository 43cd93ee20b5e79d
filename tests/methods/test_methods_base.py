from __future__ import annotations

import pytest
import torch
from method_cases import noise, random_video

from vllm_prune.methods import Assignment, VideoTokens, compact


def test_a_single_member_is_bit_equal_and_a_mean_is_accumulated_in_float32() -> None:
    features = noise(0, 6, 4).to(torch.bfloat16)
    tokens = VideoTokens.from_features(features, (6, 1, 1))
    assignment = Assignment(torch.tensor([1, 0, 1, -1, 1, 2]), torch.tensor([1, 2, 5]))
    assignment.validate()
    merged = compact(tokens, assignment)
    assert torch.equal(merged.features[[0, 2]], features[[1, 5]])
    assert torch.equal(merged.features[1], features[[0, 2, 4]].float().mean(0).to(torch.bfloat16))
    assert merged.grid.tolist() == [[1, 0, 0], [2, 0, 0], [5, 0, 0]]


def test_large_merges_are_done_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = random_video(1, (30, 2, 2))
    slot = torch.arange(120) % 7
    assignment = Assignment(slot, torch.arange(7))
    whole = compact(tokens, assignment).features
    monkeypatch.setattr("vllm_prune.methods._means._CHUNK_BYTES", 100)
    assert torch.equal(compact(tokens, assignment).features, whole)
    expected = torch.stack([tokens.features[slot == s].mean(0) for s in range(7)])
    torch.testing.assert_close(whole, expected)


def test_half_precision_means_do_not_overflow() -> None:
    tokens = VideoTokens.from_features(torch.full((4, 2), 60000.0, dtype=torch.float16), (4, 1, 1))
    merged = compact(tokens, Assignment(torch.zeros(4, dtype=torch.int64), torch.tensor([0])))
    assert merged.features.tolist() == [[60000.0, 60000.0]]


@pytest.mark.parametrize(
    ("slot", "anchor", "message"),
    [
        ([0, 2], [0, 1], "slot: values 0..2"),
        ([0, -2], [0], "slot: values -2..0"),
        ([0, 1], [0, 2], "anchor: values 0..2"),
        ([0, 1], [1, 0], "not strictly increasing"),
        ([0, 0], [0, 1], "not a member"),
        ([0, -1], [1], "not a member"),
    ],
)
def test_validate_refuses(slot: list[int], anchor: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Assignment(torch.tensor(slot), torch.tensor(anchor)).validate()


@pytest.mark.parametrize(
    ("shape", "dtype", "grid_thw", "message"),
    [
        ((6,), torch.float32, (6, 1, 1), "features: torch.float32"),
        ((2, 3, 4), torch.float32, (2, 3, 1), "use a floating-point tensor"),
        ((6, 4), torch.int64, (6, 1, 1), "features: torch.int64"),
        ((6, 0), torch.float32, (6, 1, 1), "at least one token and one channel"),
        ((6, 4), torch.float32, (5, 1, 1), "use 5 tokens"),
        ((0, 4), torch.float32, (0, 1, 1), r"grid_thw=\(0, 1, 1\)"),
    ],
)
def test_video_tokens_refuse(shape: tuple[int, ...], dtype: torch.dtype, grid_thw: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoTokens.from_features(torch.zeros(shape, dtype=dtype), grid_thw)


def test_a_grid_must_fit_the_features() -> None:
    with pytest.raises(ValueError, match=r"use int64 of shape \[4, 3\]"):
        VideoTokens(torch.zeros(4, 2), torch.zeros(4, 3), (4, 1, 1))


def test_an_assignment_must_fit_the_tokens() -> None:
    with pytest.raises(ValueError, match="slot: 3 entries for 4 tokens"):
        compact(random_video(0, (4, 1, 1)), Assignment.identity(3))
