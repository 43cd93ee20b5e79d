"""What a worker does after a step: hangs its notes on its output. Called by `patches/worker_step_notes.py`."""

from __future__ import annotations

from typing import Any

from vllm.v1.outputs import AsyncModelRunnerOutput

from vllm_prune.serving.wire.long_spans import ATTRIBUTE as LONG_SPANS
from vllm_prune.serving.wire.notes import ATTRIBUTE, StepRecorder


def take_notes(worker: Any) -> StepRecorder | None:
    """What the model of a vLLM worker noted since the last call; None for models that note nothing."""
    take = getattr(worker.get_model(), "take_notes", None)
    return None if take is None else take()


def begin_step(worker: Any, step: Any) -> None:
    """Tells the model of a vLLM worker what vLLM's `SchedulerOutput` of the coming step says of long dense prefixes."""
    take_notes(worker)  # whatever vLLM's profiling or a step that failed left there
    prefixes = getattr(worker.get_model(), "long_prefixes", None)
    if prefixes is not None:
        prefixes.begin_step(getattr(step, LONG_SPANS, ()))


def require_dense_step(worker: Any) -> None:
    """Raises if the step that has just run left videos whose tokens were to be chosen in it.

    Its answers would rest on tokens that nobody chose, at positions that stand for none; to end the engine is better.
    """
    if getattr(worker.get_model(), "waits_for_dense_step", False):
        raise RuntimeError(
            "vLLM ran a step without the model's forward, so its videos were not pruned by their question; leave out "
            "what replays the whole model (such as a cudagraph_mode for mixed batches), or report it to vllm-prune"
        )


def attach_notes(output: Any, notes: StepRecorder | None) -> Any:
    """vLLM's output of a step, with its notes, if there are any; None, of a step without one, as it is.

    An output that is still being copied from the device gets them when it is ready, and so waits for nothing here.
    """
    if not notes or output is None:
        return output
    if not isinstance(output, AsyncModelRunnerOutput):
        setattr(output, ATTRIBUTE, notes.finish())
        return output
    get_output = output.get_output

    def get_output_with_notes() -> Any:
        ready = get_output()
        setattr(ready, ATTRIBUTE, notes.finish())
        return ready

    output.get_output = get_output_with_notes
    return output
