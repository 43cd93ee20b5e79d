"""Held-out clips of the embedded model's generator."""

import sys

import numpy as np
import pytest

from vllm_prune.bench.accuracy.datasets import synthetic
from vllm_prune.bench.throughput.errors import BenchmarkError

named_degradation = pytest.importorskip("benchmarks.tiny_model.degrade").named_degradation
long_clips = pytest.importorskip("benchmarks.tiny_model.long_clips")
clips = pytest.importorskip("benchmarks.tiny_model.clips", reason="needs the repository's benchmarks/")


def test_clips_are_held_out_ones_with_their_questions():
    loaded = synthetic.load(2, [3], [16], ["noise"])
    videos = list(dict.fromkeys(question.video for question in loaded))
    assert len(videos) == 2
    for video in videos:
        assert 3_000_000 <= video.seed - clips.HELD_OUT_SEED < 4_000_000
        clip = clips.make_clip(video.seed, 16, named_degradation("noise"))
        taken = video.frames(16)
        assert np.array_equal(taken.pixels, clip.frames)
        assert taken.metadata()["duration"] == 8.0
        asked = [(q.category, q.text, q.answer) for q in loaded if q.video == video]
        assert asked == [(q.type, q.text, q.answer) for q in clip.questions]


def test_each_kind_and_seed_has_scenes_of_its_own():
    loaded = synthetic.load(1, [0, 1], [16, 32], ["clean", "noise"])
    videos = {question.video for question in loaded}
    assert len({video.key for video in videos}) == 8
    assert len({video.scene for video in videos}) == 8
    assert len({question.key for question in loaded}) == len(loaded)
    assert {question.subset for question in loaded} == {
        f"{frames} frames, {noise}" for frames in (16, 32) for noise in ("clean", "noise")
    }


def test_long_clips_show_their_events_once_before_a_still_background():
    loaded = synthetic.load_long(3, [0], [512], ["clean"])
    assert {question.category for question in loaded} <= {"flash_form", "flash_colour"}
    for video in {question.video for question in loaded}:
        taken = video.frames(512)
        assert (len(taken.pixels), taken.metadata()["duration"]) == (512, 32.0)
        busy = (taken.pixels != np.median(taken.pixels, axis=0)).any(axis=(1, 2, 3)).nonzero()[0]
        assert 0 < busy[-1] - busy[0] < 64
        scene = long_clips.make_long_clip(video.seed, 512).scene
        for flash in scene.flashes:
            assert busy[0] <= flash.start < flash.end <= busy[-1] + 1
            assert flash.end - flash.start <= 4
    with pytest.raises(BenchmarkError, match="--frames 63: clips have 64 to 4096 frames"):
        synthetic.load_long(1, [0], [63], ["clean"])


def test_mistakes_are_named():
    with pytest.raises(BenchmarkError, match="--n 1001: a seed has 1000 clips of a kind"):
        synthetic.load(1001, [0], [16], ["clean"])
    with pytest.raises(BenchmarkError, match="--frames 20: clips have 16, 32, 64 frames"):
        synthetic.load(1, [0], [20], ["clean"])
    with pytest.raises(BenchmarkError, match=r"--noise fog: .*flicker"):
        synthetic.load(1, [0], [16], ["fog"])
    (question, *_) = synthetic.load(1, [0], [32], ["clean"])
    with pytest.raises(BenchmarkError, match="--max-frames 16: must be 32 or more"):
        question.video.frames(16)


def test_without_the_generator_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "benchmarks.tiny_model.clips", None)
    with pytest.raises(BenchmarkError, match="in the source repository but not in the installed package"):
        synthetic.load(1, [0], [16], ["clean"])
