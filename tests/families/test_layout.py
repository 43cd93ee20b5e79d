"""A medium's slots, their positions, and pinned rows that keep their places whatever is dropped between them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from vllm.model_executor.models.qwen2_vl import Qwen2VLForConditionalGeneration
from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

from vllm_prune.budget import count_kept
from vllm_prune.config import PruneConfig
from vllm_prune.layout import MediumLayout, cell_slots
from vllm_prune.serving.wire.notes import StepRecorder
from vllm_prune.serving.wire.request_spec import VideoSpec
from vllm_prune.serving.worker import carrier
from vllm_prune.serving.worker.encoder_rows import EncoderRows
from vllm_prune.serving.worker.positions import Medium, prompt_positions
from vllm_prune.spans import TurnFormat

START, END, PAD, OTHER = 1, 2, 3, 9
CONFIG = SimpleNamespace(
    video_token_id=PAD,
    vision_start_token_id=START,
    vision_end_token_id=END,
    vision_config=SimpleNamespace(spatial_merge_size=2),
)
GRIDS = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))


def timestamped(grid: tuple[int, int, int], lengths: list[int]) -> MediumLayout:
    """Before each step a timestamp of some tokens and a start, behind it an end."""
    runs = [[OTHER] * lengths[step % len(lengths)] + [START] for step in range(grid[0])]
    text = [runs[0], *([END, *run] for run in runs[1:]), [END]]
    return MediumLayout(grid, tuple(map(tuple, text)), rope="per_step")


def feature(offset: int, length: int, grid: tuple[int, int, int]) -> MultiModalFeatureSpec:
    t, h, w = grid
    data: Any = {"video_grid_thw": SimpleNamespace(data=torch.tensor([t, 2 * h, 2 * w]))}
    return MultiModalFeatureSpec(data, "video", "", PlaceholderRange(offset=offset, length=length))


@given(GRIDS, st.lists(st.integers(0, 7), min_size=1, max_size=4), st.integers(0, 5), st.integers(0, 5))
def test_positions_between_timestamps_are_those_of_qwen3_vl(grid, lengths, before, after):
    layout = timestamped(grid, lengths)
    prompt = [OTHER] * before + layout.prompt(PAD) + [OTHER] * after
    expected, delta = Qwen3VLForConditionalGeneration._get_mrope_input_positions(
        prompt, [feature(before, layout.num_slots, grid)], CONFIG
    )
    found = prompt_positions(len(prompt), [Medium(before, layout.num_slots, layout)])
    assert torch.equal(found[0], expected)
    assert found[1] == delta


@given(GRIDS, st.integers(0, 5), st.integers(0, 5))
def test_positions_of_a_contiguous_video_are_those_of_qwen2_vl(grid, before, after):
    layout = MediumLayout(grid)
    model: Any = SimpleNamespace(config=CONFIG)
    model.iter_mm_grid_thw = lambda features: Qwen2VLForConditionalGeneration.iter_mm_grid_thw(model, features)
    prompt = [OTHER] * before + layout.prompt(PAD) + [OTHER] * after
    expected, delta = Qwen2VLForConditionalGeneration.get_mrope_input_positions(
        model, prompt, [feature(before, layout.num_slots, grid)]
    )
    found = prompt_positions(len(prompt), [Medium(before, layout.num_slots, layout)])
    assert torch.equal(found[0], expected)
    assert found[1] == delta


def test_one_dimensional_positions_with_rows_of_the_encoder():
    layout = MediumLayout((1, 2, 2), encoder_pins=(2, 5), rope="sequential")
    assert layout.is_pinned().tolist() == [False, False, True, False, False, True]
    assert layout.offsets()[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert (layout.num_slots, layout.extent(), layout.prompt(PAD)) == (6, 6, [PAD] * 6)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"grid": (0, 1, 1)}, "each extent must be 1 or more"),
        ({"grid": (2, 1, 1), "text": ((1,), (2,)), "rope": "per_step"}, "2 runs around 2 steps; use 3"),
        ({"grid": (1, 1, 1), "text": ((1,), (2,)), "encoder_pins": (0,)}, "cannot be combined with text"),
        ({"grid": (1, 1, 1), "encoder_pins": (1,)}, "has no positions for 1 pinned rows"),
    ],
)
def test_layouts_that_contradict_themselves_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        MediumLayout(**arguments)


def rows_of(layout: MediumLayout, config: dict[str, Any], levels: int = 0) -> tuple[Any, ...]:
    """Features of a video's cells, its specification and counts, and its rows' features and slots."""
    width = 8
    rows = EncoderRows(None, width, lambda ids: ids[:, None] * torch.ones(width))
    spec = VideoSpec(
        config=PruneConfig.parse(config), layout=layout, turn=TurnFormat(reply_start=(5,), num_more=0), trace_key=None
    )
    spec = VideoSpec.decode(spec.encode())
    features = torch.randn(layout.num_cells, (1 + levels) * width, generator=torch.Generator().manual_seed(0))
    (packed,) = rows.pack([rows.select(features, spec, None, StepRecorder())])
    return features, spec.counts, *carrier.unpack(packed, features.shape[1])[:2], len(packed)


@given(GRIDS, st.lists(st.integers(0, 6), min_size=1, max_size=4), st.floats(0.01, 0.99), st.integers(0, 2))
def test_no_timestamp_drifts_from_its_tokens(alone, grid, lengths, ratio, levels):
    """Rows are the pinned ones, all, and the kept cells, each at its own slot; steps without cells keep their text."""
    layout = timestamped(grid, lengths)
    config = {"method": "uniform", "keep_ratio": ratio}
    assume(count_kept(layout.num_cells, ratio) < layout.num_cells)
    features, counts, found, slots, num_rows = rows_of(layout, config, levels)
    assert num_rows == counts.rows == counts.kept + layout.num_pinned
    assert (slots.diff() > 0).all()
    pinned = torch.from_numpy(layout.is_pinned())[slots]
    ids = torch.tensor(layout.prompt(PAD))[slots[pinned]]
    assert ids.tolist() == layout.text_ids()
    assert torch.equal(found[pinned][:, :8], ids[:, None] * torch.ones(8))
    assert not found[pinned][:, 8:].any()
    cells = torch.searchsorted(torch.from_numpy(cell_slots(layout)), slots[~pinned])
    assert torch.equal(found[~pinned], features[cells])


@pytest.mark.parametrize("config", ["default", {"method": "attention", "keep_ratio": 0.3}])
def test_rows_of_question_aware_videos_hold_all_that_enters(alone, config):
    layout = timestamped((4, 3, 3), [5, 3])
    parsed = config if isinstance(config, dict) else {"preset": config}
    _, counts, found, slots, num_rows = rows_of(layout, parsed)
    assert num_rows == counts.rows
    entering = slots[: counts.carried_rows]
    assert (entering.diff() > 0).all()
    pinned = torch.from_numpy(layout.is_pinned())[entering]
    assert int(pinned.sum()) == layout.num_pinned
    assert found[: counts.carried_rows][pinned][:, 0].tolist() == layout.text_ids()


@pytest.mark.parametrize("pins", [(6, 7), (2, 5)])
def test_rows_of_the_encoder_stay_at_their_places(alone, pins):
    """Those behind all others, as a video's newline, are told from them without a copy."""
    layout = MediumLayout((1, 2, 3), encoder_pins=pins, rope="sequential")
    rows, features = EncoderRows(None, 8, lambda ids: ids), torch.randn(8, 8)
    spec = VideoSpec(config=PruneConfig.parse({"method": "uniform", "keep_ratio": 0.5}), layout=layout, turn=None)
    (packed,) = rows.pack([rows.select(features, spec, None, StepRecorder())])
    found, slots, _ = carrier.unpack(packed, 8)
    assert set(pins) < set(slots.tolist())
    assert torch.equal(found, features[slots])
    copied = rows._split(features, layout)[0].data_ptr() != features.data_ptr()
    assert copied == (pins == (2, 5))


def test_what_is_decided_on_the_first_level_is_done_to_all(alone):
    """The same tokens whatever later layers are given, and their means in all columns."""
    layout = MediumLayout((2, 4, 4))
    config = {"stage1": {"cluster_ratio": 0.5}}
    features, _, found, slots, _ = rows_of(layout, config, levels=2)
    narrow = EncoderRows(None, 8, lambda ids: ids)
    spec = VideoSpec(config=PruneConfig.parse(config), layout=layout, turn=None)
    (packed,) = narrow.pack([narrow.select(features[:, :8].contiguous(), spec, None, StepRecorder())])
    first = carrier.unpack(packed, 8)
    assert torch.equal(first[1], slots)
    assert torch.equal(first[0], found[:, :8])
