"""A step with a dense prefix goes through the model's forward, or nothing of it leaves the worker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.compilation import breakable_cudagraph
from vllm.config import CUDAGraphMode
from vllm.forward_context import BatchDescriptor, override_forward_context

from vllm_prune.patches.worker_graph_replay import PATCH


class Model:
    """What the wrapper runs: says that it was called."""

    waits_for_dense_step = False

    def __call__(self, **inputs: Any) -> str:
        return "the model's forward"


@pytest.fixture
def captured(monkeypatch) -> breakable_cudagraph.BreakableCUDAGraphWrapper:
    """vLLM's wrapper around a model of which it has a capture; made without CUDA, which only the capturing needs."""
    PATCH.apply()
    wrapper = breakable_cudagraph.BreakableCUDAGraphWrapper.__new__(breakable_cudagraph.BreakableCUDAGraphWrapper)
    batch = BatchDescriptor(num_tokens=448)
    entry = breakable_cudagraph._BreakableEntry(batch_descriptor=batch)
    entry.capture, entry.output = SimpleNamespace(replay=lambda: None), "what was captured"
    wrapper.runnable, wrapper.runtime_mode, wrapper.entries = Model(), None, {batch: entry}
    wrapper.is_debugging_mode = False
    context = SimpleNamespace(batch_descriptor=batch, cudagraph_runtime_mode=CUDAGraphMode.PIECEWISE)
    with override_forward_context(context):
        yield wrapper


def test_a_capture_is_replayed_where_nothing_is_to_be_chosen(captured):
    assert captured(inputs_embeds=None) == "what was captured"


def test_a_dense_step_runs_the_model(captured):
    captured.runnable.waits_for_dense_step = True
    assert captured(inputs_embeds=None) == "the model's forward"


def _step_without_forward(worker: Any) -> str:
    """What a step says that leaves a video waiting, as one does whose forward is replayed."""
    from vllm.v1.core.sched.output import SchedulerOutput

    model = worker.get_model()
    model._dense_videos = [object()]
    try:
        worker.execute_model(SchedulerOutput.make_empty())
    except RuntimeError as error:
        return str(error)
    finally:
        model._dense_videos = []
    return ""


def test_a_step_that_went_past_forward_is_noticed(eager):
    (message,) = eager.call("on_ranks", _step_without_forward)
    assert "its videos were not pruned by their question" in message
