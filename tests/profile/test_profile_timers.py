"""Stages do not overlap, and what is timed is put back as it was."""

import pytest

from vllm_prune.profile.stages import STAGES, timed_stages
from vllm_prune.profile.timers import Timers


class Clock:
    """Goes on by itself when it is told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def pass_by(self, seconds: float) -> None:
        self.seconds += seconds


def test_a_stage_within_another_is_counted_once():
    clock = Clock()
    timers = Timers(clock=clock)
    inner = timers.timed("inner", lambda: clock.pass_by(2.0))

    def work() -> None:
        inner()
        clock.pass_by(1.0)
        inner()

    timers.timed("outer", work)()
    seen = timers.reset()
    assert seen.calls == {"inner": 2, "outer": 1}
    assert seen.seconds == {"inner": 4.0, "outer": 1.0}
    assert timers.times.calls == {}


def test_the_device_is_waited_for_at_both_ends():
    waited = []
    timers = Timers(wait=lambda: waited.append(len(waited)))
    timers.timed("stage", lambda: None)()
    assert len(waited) == 2


def test_a_stage_that_fails_is_counted_and_forgotten():
    clock = Clock()
    timers = Timers(clock=clock)

    def fail() -> None:
        clock.pass_by(3.0)
        raise KeyError("x")

    outer = timers.timed("outer", lambda: timers.timed("inner", fail)())
    with pytest.raises(KeyError):
        outer()
    assert timers.reset().seconds == {"inner": 3.0, "outer": 0.0}
    timers.timed("later", lambda: clock.pass_by(1.0))()
    assert timers.times.seconds == {"later": 1.0}


def test_every_place_is_put_back():
    from vllm_prune.serving.api import video_pixels
    from vllm_prune.serving.api.processor import PruningProcessorMixin
    from vllm_prune.serving.worker.dense.dense_layers import DenseLayers
    from vllm_prune.serving.worker.dense.drop import RowDropper
    from vllm_prune.serving.worker.dense.long_prefix import LongPrefix

    class Model:
        def embed_multimodal(self):
            return "rows"

        prune_video = pack_videos = compute_logits = forward = embed_multimodal

    model = Model()
    owners = (PruningProcessorMixin, video_pixels, DenseLayers, LongPrefix, RowDropper, model)
    before = [dict(vars(owner)) for owner in owners]
    timers = Timers()
    with timed_stages(timers, model):
        assert model.embed_multimodal() == "rows"
        assert [dict(vars(owner)) for owner in owners] != before
    assert [dict(vars(owner)) for owner in owners] == before
    assert set(timers.times.calls) <= set(STAGES)
