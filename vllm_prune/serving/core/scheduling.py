"""Where prefill steps of requests with dense spans begin and end. Called by `patches/core_span_scheduling.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vllm_prune.serving.core.encoder_accounting import begin_request, release
from vllm_prune.serving.core.spans import RequestSpan, dense_request_spans
from vllm_prune.serving.wire.positions import read_position_table
from vllm_prune.serving.wire.request_spec import read_spec
from vllm_prune.serving.wire.settings import read_step_limits
from vllm_prune.spans import clip_hit, clip_to_spans

EncoderSchedule = tuple[Any, ...]
"""Encoder inputs of this step, tokens, encoder budget left; then lists that are vLLM's affair, as many as it has."""

_STEP = "_vllm_prune_dense_step"


def schedule_encoder_inputs(
    scheduler: Any, request: Any, computed: int, num_new_tokens: int, original: Callable[[int], EncoderSchedule]
) -> EncoderSchedule:
    """Schedules encoder inputs for as many tokens as keep every dense span whole.

    Args:
        scheduler: vLLM's.
        request: vLLM's, with media.
        computed: Its tokens computed so far.
        num_new_tokens: What the step's budget allows.
        original: vLLM's own way, given a number of tokens; it may lower the number.
    """
    limit_positions(request, read_position_table(scheduler.vllm_config.model_config.hf_config))
    spans = dense_request_spans(request)
    allowed = _allowed_tokens(scheduler, spans, computed, num_new_tokens)
    begin_request(scheduler.encoder_cache_manager)
    inputs, tokens, budget, *others = original(allowed)
    if tokens != allowed:
        tokens = clip_to_spans([item.span for item in spans], computed, computed + tokens) - computed
        release(scheduler.encoder_cache_manager, request, computed + tokens)
    _book_dense_rows(scheduler, spans, computed, tokens)
    return inputs, tokens, _true_budget(request, inputs, budget), *others


def limit_positions(request: Any, table: int | None) -> None:
    """Ends a reply where the decoder knows no more positions; it goes on behind those of the unpruned prompt.

    Args:
        request: vLLM's, with media, before its first step.
        table: Positions that the decoder knows; None: enough.
    """
    if table is None:
        return
    specs = [spec for feature in request.mm_features if (spec := read_spec(feature)) is not None]
    unpruned = request.num_prompt_tokens + sum(spec.positions_left_out for spec in specs)
    request.max_tokens = min(request.max_tokens, max(1, table - unpruned))


def _allowed_tokens(scheduler: Any, spans: list[RequestSpan], computed: int, num_new_tokens: int) -> int:
    if not spans:  # as on a server of another model, which nobody wrote a limit for
        return num_new_tokens
    end = clip_to_spans([item.span for item in spans], computed, computed + num_new_tokens)
    used = _dense_step(scheduler).rows
    limit = read_step_limits(scheduler.vllm_config.model_config.hf_config).dense_tokens
    assert limit is not None  # written with the engine's configuration
    for item in spans:
        if computed < item.span.end <= end and used and used + item.extra_rows > limit:
            # The rows that earlier requests have in this step's dense prefix leave no memory for these.
            return max(item.span.start - computed, 0)
    return end - computed


@dataclass
class _DenseStep:
    """What the step being scheduled computes densely."""

    number: int
    rows: int = 0
    """Beyond the tokens that vLLM schedules."""
    keys: set[str] = field(default_factory=set)
    """Of its spans."""


def _dense_step(scheduler: Any) -> _DenseStep:
    step = getattr(scheduler, _STEP, None)
    if step is None or step.number != scheduler.current_step:
        step = _DenseStep(scheduler.current_step)
        setattr(scheduler, _STEP, step)
    return step


def _book_dense_rows(scheduler: Any, spans: list[RequestSpan], computed: int, tokens: int) -> None:
    step = _dense_step(scheduler)
    for item in spans:
        if computed < item.span.end <= computed + tokens:
            step.rows += item.extra_rows
            step.keys.add(item.key)


def _true_budget(request: Any, inputs: list[int], budget: int) -> int:
    """vLLM counts the rows that the encoder yields; what it costs is the tokens before pruning."""
    for index in inputs:
        spec = read_spec(request.mm_features[index])
        if spec is not None and not spec.keeps_all:
            budget -= spec.num_tokens - spec.counts.rows
    return max(budget, 0)


def clip_prefix_hit(
    scheduler: Any, request: Any, blocks: Any, num_tokens: int, shared_prefix_boundary: int, diverged: bool
) -> tuple[Any, int, int, bool]:
    """vLLM's prefix-cache hit, cut back to before a dense span that it does not cover whole."""
    allowed = _usable_hit(dense_request_spans(request), num_tokens, scheduler.block_size, _dense_step(scheduler).keys)
    if allowed == num_tokens:
        return blocks, num_tokens, shared_prefix_boundary, diverged
    blocks = scheduler.kv_cache_manager.truncate_computed_blocks(blocks, allowed)
    return blocks, allowed, min(shared_prefix_boundary, allowed), diverged


def _usable_hit(spans: list[RequestSpan], num_tokens: int, block_size: int, under_way: set[str]) -> int:
    """How many of `num_tokens` tokens that were found may be used.

    vLLM counts blocks as found that an earlier request of the same step is about to fill. It fills those of a dense
    span after the pruning layers only, too late for a request that reads them in the layers before: `under_way` are
    their keys.
    """
    allowed = clip_hit([item.span for item in spans], num_tokens)
    allowed = min([allowed, *(item.span.start for item in spans if item.key in under_way)])
    if allowed == num_tokens:
        return num_tokens
    # The block that `allowed` falls into may begin inside an earlier span.
    return _usable_hit(spans, allowed - allowed % block_size, block_size, under_way)
