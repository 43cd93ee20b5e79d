"""Long videos in half precision: compared in float32 a block at a time, as if compared whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import SEEDS, assign, mixed_video, noise

from vllm_prune.bench.methods.measure import peak_on_cpu
from vllm_prune.methods import (
    Assignment,
    VideoTokens,
    _broken,
    _cell_links,
    _finite,
    _frame_products,
    _kernels,
    _means,
    _ragged,
    compact,
    create,
    evs,
    merge_dropped,
    names,
    relevance,
    vidcom2,
)
from vllm_prune.methods.merge_dropped import MergeDropped
from vllm_prune.methods.merge_frames import merge_frames
from vllm_prune.methods.question import similarity_to_text

PLACES = {
    _broken: "_COPY_BYTES",
    _cell_links: "_COPY_BYTES",
    _finite: "_BLOCK_BYTES",
    _frame_products: "_PIECE_BYTES",
    _kernels: "_COPY_BYTES",
    _means: "_CHUNK_BYTES",
    _ragged: "_BATCH_BYTES",
    evs: "_ONE_THREAD_BYTES",
    vidcom2: "_COPY_BYTES",
}
"""Where the size of a block is stated."""
HALF_OF_THE_CHANNELS = {"vidcom2"}
"""Methods that hold half of the features once more."""
HOLD_WHAT_IS_KEPT = {"merge_dropped"}
"""Methods that hold the kept tokens in float32."""
OF_BOUNDED_KERNELS = {"dpp"}
"""Methods whose own products have a limit that is above the features here."""


def in_blocks(patch: pytest.MonkeyPatch, size: int) -> None:
    for module, name in PLACES.items():
        patch.setattr(module, name, size)
    patch.setattr(_finite, "_WHOLE_BYTES", 0)
    patch.setattr(_frame_products, "_KEPT_BYTES", 0)
    patch.setattr(relevance, "_ROWS_AT_ONCE", 64)
    patch.setattr(merge_dropped, "_NUMBERS_AT_ONCE", size // 4)


def chooser(name: str) -> Callable[[VideoTokens, int], Assignment]:
    if name == "merge_frames":
        return lambda tokens, budget: merge_frames(tokens, budget, 0.5)
    if name == "merge_dropped":
        return MergeDropped(create("dart")).assign
    if name == "topk by segment":
        score = create("topk", scope="segment")
        return lambda tokens, budget: assign(score, tokens, budget)
    return lambda tokens, budget: assign(create(name), tokens, budget)


CHOOSERS = [*sorted({*names()} - {"random", "uniform"}), "merge_frames", "merge_dropped", "topk by segment"]


@pytest.mark.parametrize("name", [name for name in CHOOSERS if name not in OF_BOUNDED_KERNELS])
def test_no_second_copy_of_the_features(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = mixed_video(0, (64, 8, 8), 256)
    tokens = VideoTokens.from_features(tokens.features.bfloat16(), tokens.grid_thw)
    size = tokens.features.numel() * 2
    in_blocks(monkeypatch, size // 32)
    limit = (0.7 if name in HALF_OF_THE_CHANNELS else 0.4) * size
    budget = tokens.num_tokens // (30 if name in HOLD_WHAT_IS_KEPT else 3)
    assert peak_on_cpu(lambda: chooser(name)(tokens, budget)) < limit


def test_merging_holds_what_comes_out_and_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    features = noise(0, 4096, 256).bfloat16()
    tokens, size = VideoTokens.from_features(features, (64, 8, 8)), features.numel() * 2
    in_blocks(monkeypatch, size // 32)
    slot = (torch.arange(4096) // 3).clamp(max=500)  # the last one has most of the tokens
    assignment = Assignment(slot, 3 * torch.arange(501))
    merged = compact(tokens, assignment)
    assert peak_on_cpu(lambda: compact(tokens, assignment)) < merged.features.numel() * 2 + size / 4
    torch.testing.assert_close(merged.features[-1], features[1500:].double().mean(0).bfloat16(), atol=1e-4, rtol=0.01)
    text = noise(1, 5, 256)
    for over in ("mean", "max"):
        assert peak_on_cpu(lambda over=over: similarity_to_text(features, text, over)) < size / 2


@pytest.mark.parametrize("name", CHOOSERS)
@settings(max_examples=5)
@given(seed=SEEDS, frames=st.integers(1, 12), dtype=st.sampled_from([torch.bfloat16, torch.float16]), data=st.data())
def test_blocks_choose_what_the_whole_chooses(
    name: str, seed: int, frames: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    tokens = mixed_video(seed, (frames, 2, 3), 12)
    features = tokens.features.to(dtype)
    if data.draw(st.booleans(), label="ties"):
        features = features.round().clamp(-1, 1)
    for value in (torch.nan, torch.inf, 0, 1e3):
        features[noise(seed + 9, len(features)) > data.draw(st.floats(1, 4), label=f"share of {value}")] = value
    tokens = VideoTokens.from_features(features, tokens.grid_thw)
    budget = data.draw(st.integers(1, len(features)))
    whole = chooser(name)(tokens, budget)
    merged = compact(tokens, whole).features
    with pytest.MonkeyPatch.context() as patch:
        in_blocks(patch, data.draw(st.sampled_from([1, 200, 700]), label="bytes"))
        blocks = chooser(name)(tokens, budget)
        assert torch.equal(blocks.slot, whole.slot)
        assert torch.equal(compact(tokens, whole).features.nan_to_num(7), merged.nan_to_num(7))
