"""Finds out which requests a step's notes are about, and sends them along with these requests' next outputs.

Runs in the engine core; `patches/core_step_notes.py` calls it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs

from vllm_prune.serving.core.failures import end_failed
from vllm_prune.serving.wire.notes import ATTRIBUTE, RequestNotes, StepNotes

_PENDING = "_vllm_prune_pending_notes"
_PRUNED = ("image", "video")

Outputs = dict[int, EngineCoreOutputs]
"""By API server process."""


def update_from_output(scheduler: Any, step: Any, output: Any, original: Callable[[], Outputs]) -> Outputs:
    """vLLM's way, with the notes of the step's output and what follows from them.

    Args:
        scheduler: vLLM's.
        step: vLLM's `SchedulerOutput`.
        output: vLLM's `ModelRunnerOutput` of it.
        original: vLLM's own way.
    """
    pending: dict[str, RequestNotes] = scheduler.__dict__.setdefault(_PENDING, {})
    notes: StepNotes | None = getattr(output, ATTRIBUTE, None)
    ended: dict[str, tuple[Any, str]] = {}
    if notes is not None:
        _assign(scheduler, step, output, notes, pending)
        if notes.failures:
            ended = end_failed(scheduler, step, _requests_of(notes.failures, step, output))
    outputs = original()
    for id, (request, message) in ended.items():
        pending.setdefault(id, RequestNotes()).failure = message
        last = EngineCoreOutput(id, [], finish_reason=request.get_finished_reason(), events=request.take_events())
        outputs.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(last)
    if pending:
        _send(outputs, pending)
        for id in step.finished_req_ids:
            pending.pop(id, None)
    return outputs


def _assign(scheduler: Any, step: Any, output: Any, notes: StepNotes, pending: dict[str, RequestNotes]) -> None:
    media = _encoded_media(scheduler, step)
    if len(media) == len(notes.encoded):  # else a request was aborted meanwhile, and nobody knows whose is whose
        for (id, number), medium in zip(media, notes.encoded, strict=True):
            pending.setdefault(id, RequestNotes()).encoded[number] = medium
    by_row = {note.row: note for note in notes.dense}
    for id, row in _first_rows(step, output).items():
        if row in by_row:
            request = pending.setdefault(id, RequestNotes())
            request.dense_s += by_row[row].seconds
            request.attention += by_row[row].attention
    for row, seconds in notes.choices:
        for id in _requests_of([(row, "")], step, output):
            pending.setdefault(id, RequestNotes()).choice_s += seconds
    if notes.lost_traces and output.req_ids:
        # Counted for the whole server, so that any request whose notes are read can carry the number.
        id = next((id for id, _ in media), output.req_ids[0])
        id = next((id for id, row in _first_rows(step, output).items() if row in by_row), id)
        pending.setdefault(id, RequestNotes()).lost_traces += notes.lost_traces


def _encoded_media(scheduler: Any, step: Any) -> list[tuple[str, int]]:
    """(request, number in its prompt) of every image and video that the step encodes, in the order of the workers."""
    media: list[tuple[str, int]] = []
    for id, inputs in step.scheduled_encoder_inputs.items():
        request = scheduler.requests.get(id)
        if request is not None:
            numbers = [i for i, feature in enumerate(request.mm_features) if feature.modality in _PRUNED]
            media += [(id, numbers.index(i)) for i in inputs if i in numbers]
    return media


def _first_rows(step: Any, output: Any) -> dict[str, int]:
    """The first batch row of every request; the batch has them in the order of the output."""
    rows: dict[str, int] = {}
    row = 0
    for id in output.req_ids:
        rows[id] = row
        row += step.num_scheduled_tokens[id]
    return rows


def _requests_of(failures: list[tuple[int, str]], step: Any, output: Any) -> dict[str, str]:
    """What happened, by the request that has the row."""
    first_rows = _first_rows(step, output)
    found: dict[str, str] = {}
    for row, message in failures:
        for id, first in first_rows.items():
            if first <= row < first + step.num_scheduled_tokens[id]:
                found[id] = message
    return found


def _send(outputs: Outputs, pending: dict[str, RequestNotes]) -> None:
    for to_server in outputs.values():
        for output in to_server.outputs:
            if output.request_id in pending:
                output.trace_headers = pending.pop(output.request_id).to_headers(output.trace_headers)
