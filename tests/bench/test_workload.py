"""Requests: windows of clips, and random pixels."""

import json
import random

import numpy as np
import pytest

from vllm_prune.bench.throughput.errors import BenchmarkError
from vllm_prune.bench.throughput.workload import (
    ClipShape,
    cut_window,
    prepare_clips,
    random_pixels,
    read_clip,
    write_clip,
)

SHAPE = ClipShape(frames=6, width=56, height=28)


def gradient(frames, height=40, width=80):
    """Frames that differ from each other and from side to side."""
    base = np.linspace(0, 150, width, dtype=np.uint8)[None, :, None].repeat(height, 0).repeat(3, 2)
    return [base + np.uint8(10 * index) for index in range(frames)]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.mp4"
    write_clip(path, gradient(10))
    return path


def test_windows_have_the_shape_asked_for():
    window = cut_window(gradient(10), SHAPE, random.Random(0))
    assert len(window) == 6
    assert {frame.shape for frame in window} == {(28, 56, 3)}


def test_a_short_clip_goes_to_and_fro():
    window = cut_window(gradient(3), SHAPE, random.Random(0))
    brightness = [float(frame.mean()) for frame in window]
    assert brightness[0] < brightness[1] < brightness[2] > brightness[3] > brightness[4] < brightness[5]


def test_clips_are_distinct_whole_and_repeatable(source, tmp_path):
    ticks = []
    arguments = prepare_clips([source], 4, SHAPE, tmp_path / "a", 7, lambda: ticks.append(1))
    prepare_clips([source], 4, SHAPE, tmp_path / "b", 7, lambda: None)
    paths = sorted((tmp_path / "a").glob("*.mp4"))
    assert len({path.read_bytes() for path in paths}) == 4
    assert [path.read_bytes() for path in paths] == [(tmp_path / "b" / path.name).read_bytes() for path in paths]
    assert all(len(read_clip(path)) == 6 for path in paths)
    assert len(ticks) == 4
    assert arguments == ["--dataset-name", "sharegpt", "--dataset-path", str(tmp_path / "a" / "requests.json")]


def test_requests_are_what_vllm_reads(source, tmp_path):
    prepare_clips([source], 2, SHAPE, tmp_path / "a", 0, lambda: None)
    entries = json.loads((tmp_path / "a" / "requests.json").read_text())
    assert [entry["video"] for entry in entries] == [str(tmp_path / "a" / f"clip-00{i}.mp4") for i in range(2)]
    for entry in entries:
        # vLLM drops conversations of one turn, and prompts of fewer than four tokens.
        assert len(entry["conversations"]) == 2
        assert len(entry["conversations"][0]["value"]) > 10


def test_a_file_that_is_no_video_is_named(tmp_path):
    path = tmp_path / "x.mp4"
    path.write_bytes(b"not a video")
    with pytest.raises(BenchmarkError, match=r"x\.mp4: no frame can be read"):
        read_clip(path)


def test_shapes_too_small_are_refused():
    with pytest.raises(BenchmarkError, match="frames=1"):
        ClipShape(frames=1, width=56, height=28)


def test_random_pixels_have_one_bucket():
    arguments = random_pixels(SHAPE)
    assert arguments[arguments.index("--random-mm-bucket-config") + 1] == "{(28, 56, 6): 1.0}"
