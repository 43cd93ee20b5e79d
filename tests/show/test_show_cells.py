"""From a trace to the states of cells."""

from __future__ import annotations

import numpy as np
import pytest
from show_traces import CONFIGS, GRID, make_frames, make_panels, write_trace

from vllm_prune.budget import plan_counts
from vllm_prune.config import PruneConfig
from vllm_prune.show import ShowError, Story, map_cells, read_trace
from vllm_prune.show.cells import State
from vllm_prune.show.story import make_panel
from vllm_prune.show.trace_file import TracedVideo

N = GRID[0] * GRID[1] * GRID[2]


@pytest.mark.parametrize("prune", CONFIGS, ids=str)
def test_states_agree_with_tokens_and_counts(tmp_path, prune):
    video = read_trace(write_trace(tmp_path, prune))[0]
    cells = map_cells(video)
    kept = plan_counts(PruneConfig.parse(prune), N).kept
    assert cells.grid == GRID
    assert cells.anchor.sum() == cells.kept_per_step.sum() == kept == video.counts[-1]
    alive = np.isin(cells.state, (State.KEPT, State.MERGED))
    tokens, sizes = np.unique(cells.token[alive], return_counts=True)
    assert len(tokens) == kept
    for token, size in zip(tokens, sizes, strict=True):
        mine = cells.token == token
        assert (cells.state[mine] == (State.MERGED if size > 1 else State.KEPT)).all()
        assert cells.anchor[mine].sum() == 1
    np.testing.assert_array_equal(cells.state == State.DROPPED, cells.token == -1)
    assert not np.isin(cells.token[cells.state == State.UNASKED], tokens).any()


@pytest.mark.parametrize("params", [{}, {"relevance": "learned"}], ids=["attention", "learned"])
def test_importance_decides_at_the_first_pruning_layer(tmp_path, params):
    cells = map_cells(read_trace(write_trace(tmp_path, {"preset": "default", "params": params}))[0])
    assert cells.heat is not None
    assert cells.heat.max() == 1
    asked = np.isin(cells.state, (State.KEPT, State.MERGED))
    assert cells.heat[asked].min() >= cells.heat[cells.state == State.UNASKED].max()
    # Merged cells are equally important: they are one token.
    for token in np.unique(cells.token):
        assert len(np.unique(cells.heat[cells.token == token])) == 1


def test_segments_are_those_of_stage_1_and_absent_without(tmp_path):
    segment = map_cells(read_trace(write_trace(tmp_path / "a", "stage1_only"))[0]).segment
    assert segment is not None
    assert len(segment) == GRID[0]
    assert segment[0] == 0
    assert set(np.diff(segment)) <= {0, 1}
    assert map_cells(read_trace(write_trace(tmp_path / "b", "stage2_only"))[0]).segment is None


def test_still_cells_are_merged_over_time(tmp_path):
    cells = map_cells(read_trace(write_trace(tmp_path, "stage1_only"))[0])
    first = np.flatnonzero(cells.segment == cells.segment[0])
    assert len(first) > 1
    still = cells.token[first][:, :, : GRID[2] // 2]
    assert (still == still[0]).all()
    assert (cells.state[first][:, :, : GRID[2] // 2] == State.MERGED).all()


def test_a_video_that_keeps_everything():
    cells = map_cells(TracedVideo.unpruned(GRID, PruneConfig()))
    assert (cells.state == State.KEPT).all()
    assert cells.anchor.all()
    assert cells.heat is None


def test_the_counts_are_named(tmp_path):
    both, three = make_panels(tmp_path, ["default", {"method": "uniform", "keep_ratio": 0.2, "stage1": True}])
    assert both.counts == (("tokens", 210), ("after stage 1", 105), ("after layer 2", 42))
    assert three.counts == (("tokens", 210), ("after stage 1 and uniform", 21))
    (asked,) = make_panels(tmp_path, ["ask_first"])
    assert asked.counts == (("tokens", 210), ("after the question", 42))
    assert both.summary == "210 tokens -> 105 after stage 1 -> 42 after layer 2 (20%)"


def test_rows_between_the_tokens_are_told_apart(tmp_path):
    (video,) = read_trace(write_trace(tmp_path, "stage1_only", structure=54))
    panel = make_panel("stage1_only", video)
    assert panel.counts[-1] == ("after stage 1", 105)
    assert panel.summary == "210 tokens -> 105 after stage 1 (50%); 54 of structure between them"


def test_all_videos_of_a_request_are_read(tmp_path):
    assert len(read_trace(write_trace(tmp_path, "default", videos=2))) == 2


@pytest.mark.parametrize("missing", [0, 1])
def test_frames_must_fit_the_trace(tmp_path, missing):
    panels = make_panels(tmp_path, ["default"])
    Story(make_frames(GRID, missing), None, panels)
    with pytest.raises(ShowError, match=r"10 frames where the trace has 6 steps of 2; give the video"):
        Story(make_frames(GRID, 2), None, panels)


def rewrite(path, **changes):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays.update({name: value for name, value in changes.items() if value is not None})
    for name, value in changes.items():
        if value is None:
            del arrays[name]
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": np.array(99)}, r"trace=.*format 99, this version reads 1; use the version that wrote it"),
        ({"format": None}, r"trace=.*not a trace; give a file"),
        ({"video0/slot": None}, r"video0/slot is missing; write it again"),
    ],
)
def test_another_format_is_named(tmp_path, changes, message):
    path = write_trace(tmp_path, "default")
    rewrite(path, **changes)
    with pytest.raises(ShowError, match=message):
        read_trace(path)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_trace_is_named(tmp_path, content):
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(ShowError, match=r"trace=.*x\.npz.*not a readable"):
        read_trace(path)
    with pytest.raises(ShowError, match="no such file"):
        read_trace(tmp_path / "y.npz")
