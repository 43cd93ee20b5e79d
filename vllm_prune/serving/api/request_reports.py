"""Follows requests through the API server: from the processed prompt to the finished answer.

`patches/server_request_reports.py` calls these functions. An in-process engine (`vllm.LLM`) goes the same way, and its
`RequestOutput` has the report as `prune`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype

from vllm_prune.config import PruneConfigError
from vllm_prune.serving.api import metrics
from vllm_prune.serving.api.ends import engine_seconds, state_of, worse
from vllm_prune.serving.api.features import begin_request, hand_out
from vllm_prune.serving.api.log import write_log
from vllm_prune.serving.api.prompt_facts import PromptFacts, facts_of
from vllm_prune.serving.api.prompt_media import chosen_inside
from vllm_prune.serving.api.report import KVFormat, RequestReport
from vllm_prune.serving.api.salts import withheld
from vllm_prune.serving.api.span_check import check_one_step
from vllm_prune.serving.wire.notes import RequestNotes
from vllm_prune.serving.wire.settings import read_settings, read_step_limits

_KNOWN = "_vllm_prune_server"
_REPORT = "_vllm_prune_report"

# vLLM makes a request of a processed prompt and, in the same task, queues it; its own request has no room for ours.
_under_way: ContextVar[tuple[str, RequestReport] | None] = ContextVar("vllm_prune_report", default=None)

searched: ContextVar[RequestReport | None] = ContextVar("vllm_prune_searched", default=None)
"""The report of a beam search under way, of which every step is a request to the engine (`api/beams.py`)."""


class RefusedRequest(VLLMValidationError, PruneConfigError):
    """A refusal when a prompt becomes a request; vLLM takes errors there that are not its own for failures (500)."""


@dataclass(frozen=True)
class _Server:
    kv: KVFormat
    log: bool


def _server(vllm_config: Any) -> _Server:
    known = vllm_config.__dict__.get(_KNOWN)
    if known is None:
        known = _Server(kv_format(vllm_config), read_settings(vllm_config.model_config.hf_config).log)
        vllm_config.__dict__[_KNOWN] = known
    return known


def kv_format(vllm_config: Any) -> KVFormat:
    """The paged cache of an engine."""
    model, cache = vllm_config.model_config, vllm_config.cache_config
    element = kv_cache_dtype_str_to_dtype(cache.cache_dtype, model).itemsize
    layers = model.get_total_num_hidden_layers()
    token_bytes = 2 * layers * model.get_total_num_kv_heads() * model.get_head_size() * element
    return KVFormat(block_size=cache.block_size, token_bytes=token_bytes)


def begin(vllm_config: Any, request_id: str, prompt: Any, params: Any) -> None:
    """A prompt becomes a request. `params`: vLLM's; on a server of features, what is asked of them is settled there.

    Raises:
        RefusedRequest: Features are asked for that there are not, or log-probabilities of more than a step computes.
    """
    report = searched.get() or new_report(vllm_config, prompt)
    facts = None if report is None else report.facts
    try:
        asked = begin_request(vllm_config.model_config, params, prompt, facts)
        if facts is not None and getattr(params, "prompt_logprobs", None) is not None:
            _check_one_step(vllm_config.model_config.hf_config, prompt, facts)
    except PruneConfigError as error:
        metrics.observe_refusal(error)
        raise RefusedRequest(str(error)) from error
    if report is not None:
        report.asked = asked
    _under_way.set(None if report is None else (request_id, report))


def _check_one_step(hf_config: Any, prompt: Any, facts: PromptFacts) -> None:
    chosen = chosen_inside(facts.media, facts.config)
    if chosen:
        assert facts.turn is not None  # the processor refuses such requests of models without
        check_one_step(prompt["prompt_token_ids"], chosen, facts.turn, read_step_limits(hf_config))


def new_report(vllm_config: Any, prompt: Any) -> RequestReport | None:
    """The report of a processed prompt; None if that has no videos."""
    facts = facts_of(prompt)
    if facts is None:
        return None
    server = _server(vllm_config)
    return RequestReport(facts, server.kv, logged=server.log, withheld=withheld(prompt))


def queue(request: Any, state: Any) -> None:
    """The request, or one of its `n`, is queued. `state`: vLLM's `RequestState` of it."""
    under_way = _under_way.get()
    if under_way is not None and request.external_req_id == under_way[0]:
        setattr(state, _REPORT, under_way[1])


def report_of(state: Any) -> RequestReport | None:
    """The report of a vLLM `RequestState`, if its prompt has videos."""
    return getattr(state, _REPORT, None)


def receive(states: dict[str, Any], outputs: Iterable[Any]) -> list[Any]:
    """Reads what the workers said about requests; a failed one ends in an error that says why.

    Args:
        states: vLLM's `RequestState`s, by id.
        outputs: vLLM's `EngineCoreOutput`s.

    Returns:
        The states of the outputs that have a report.
    """
    reported = []
    for output in outputs:
        state = states.get(output.request_id)
        report = report_of(state)
        if state is None or report is None:
            continue
        reported.append(state)
        report.answered = report.answered or bool(output.new_token_ids)
        if report.asked is not None and output.pooling_output is not None:
            report.answered = True
            output.pooling_output, report.features = hand_out(
                report.asked, report.facts, state.prompt_token_ids, output.pooling_output
            )
        if output.finish_reason is not None:
            report.state = worse(report.state, state_of(output.finish_reason))
        notes = RequestNotes.from_headers(output.trace_headers)
        if notes is None:
            continue
        report.add(notes)
        metrics.observe_lost_traces(notes.lost_traces)
        if notes.failure:
            output.stop_reason = notes.failure
            if state.queue is not None:
                state.queue.put(GracefulHTTPError(notes.failure, HTTPStatus.INTERNAL_SERVER_ERROR))
    return reported


def finish(states: dict[str, Any], reported: Iterable[Any]) -> None:
    """Completes the reports of those requests that are gone from `states`."""
    for state in reported:
        report = report_of(state)
        if report is None or report.finished or state.request_id in states:
            continue
        if not report.engine_s:  # of several steps of one search, the first
            report.cached_tokens = state.num_cached_tokens
            report.engine_s = {} if state.stats is None else engine_seconds(state.stats, answered=report.answered)
        if not report.searched:
            conclude(report, state.external_req_id)


def conclude(report: RequestReport, request_id: str) -> None:
    """Counts and logs a request that ended."""
    report.finished = True
    metrics.observe(report)
    if report.logged:
        write_log(request_id, report)
