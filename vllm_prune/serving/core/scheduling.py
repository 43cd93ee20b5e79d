"""Where prefill steps of requests with dense spans begin and end. Called by `patches/core_span_scheduling.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vllm_prune.serving.core.encoder_accounting import begin_request, release
from vllm_prune.serving.core.long_spans import end_of_part, is_long, rows_under_way
from vllm_prune.serving.core.spans import RequestSpan, dense_request_spans
from vllm_prune.serving.wire.positions import read_position_table
from vllm_prune.serving.wire.request_spec import read_spec
from vllm_prune.serving.wire.settings import StepLimits, read_step_limits
from vllm_prune.spans import clip_hit, clip_to_spans

EncoderSchedule = tuple[Any, ...]
"""Encoder inputs of this step, tokens, encoder budget left; then lists that are vLLM's affair, as many as it has."""

_STEP = "_vllm_prune_dense_step"


def schedule_encoder_inputs(
    scheduler: Any, request: Any, computed: int, num_new_tokens: int, original: Callable[[int], EncoderSchedule]
) -> EncoderSchedule:
    """Schedules encoder inputs for as many tokens as keep every dense span whole, or end in a long one's medium.

    Args:
        scheduler: vLLM's.
        request: vLLM's, with media.
        computed: Its tokens computed so far.
        num_new_tokens: What the step's budget allows.
        original: vLLM's own way, given a number of tokens; it may lower the number.
    """
    limit_positions(request, read_position_table(scheduler.vllm_config.model_config.hf_config))
    spans = dense_request_spans(request)
    if not spans:  # as on a server of another model, which nobody wrote limits for
        begin_request(scheduler.encoder_cache_manager)
        inputs, tokens, budget, *others = original(num_new_tokens)
        return inputs, tokens, _true_budget(request, inputs, budget), *others
    limits = read_step_limits(scheduler.vllm_config.model_config.hf_config)
    part = _part_of_long_span(scheduler, request, spans, computed, num_new_tokens, limits)
    if part is None:
        allowed = _allowed_tokens(scheduler, request, spans, computed, num_new_tokens, limits)
    else:
        # All media of a span are encoded with its first part: two requests that each waited for room for a second
        # medium in the middle of theirs would wait for ever.
        allowed = part.item.span.end - computed if part.tokens else 0
    begin_request(scheduler.encoder_cache_manager)
    inputs, tokens, budget, *others = original(allowed)
    if tokens != allowed:
        tokens = clip_to_spans([item.span for item in spans], computed, computed + tokens) - computed
        release(scheduler.encoder_cache_manager, request, computed + tokens)
    elif part is not None:
        tokens = part.tokens
    _book_dense_rows(scheduler, spans, computed, tokens, part)
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


@dataclass(frozen=True)
class _Part:
    """What a step may compute of a long span that it begins or goes on with."""

    item: RequestSpan
    tokens: int


def _part_of_long_span(
    scheduler: Any, request: Any, spans: list[RequestSpan], computed: int, num_new_tokens: int, limits: StepLimits
) -> _Part | None:
    """None where a step begins in no long span."""
    item = next((item for item in spans if item.span.start <= computed < item.span.end), None)
    if item is None or not is_long(item, request, limits):
        return None
    assert limits.tokens is not None  # else none is long
    step = _dense_step(scheduler)
    if computed == item.span.start and _no_memory_for(scheduler, request, item, item.rows, limits):
        return _Part(item, 0)
    end = end_of_part(item, computed, num_new_tokens, max(limits.tokens - step.part_rows, 0))
    if step.part_rows and item.rows_between(computed, end) > limits.tokens - step.part_rows:
        end = computed
    return _Part(item, end - computed)


def _no_memory_for(scheduler: Any, request: Any, item: RequestSpan, rows: int, limits: StepLimits) -> bool:
    """Whether what other requests have under way leaves no memory for `rows` rows of a span."""
    assert limits.dense_tokens is not None  # written with the engine's configuration
    step = _dense_step(scheduler)
    used = step.rows + step.begun + rows_under_way(scheduler, request, limits)
    return bool(used) and used + rows > limits.dense_tokens


def _allowed_tokens(
    scheduler: Any, request: Any, spans: list[RequestSpan], computed: int, num_new_tokens: int, limits: StepLimits
) -> int:
    end = clip_to_spans([item.span for item in spans], computed, computed + num_new_tokens)
    for item in spans:
        if item.span.start > computed and is_long(item, request, limits):
            end = min(end, item.span.start)  # where the next step begins
        if computed < item.span.end <= end and _no_memory_for(scheduler, request, item, item.extra_rows, limits):
            return max(item.span.start - computed, 0)
    return end - computed


@dataclass
class _DenseStep:
    """What the step being scheduled computes densely."""

    number: int
    rows: int = 0
    """Of spans that it computes whole, beyond the tokens that vLLM schedules."""
    part_rows: int = 0
    """Of parts of long spans."""
    begun: int = 0
    """All rows of the long spans that it begins."""
    keys: set[str] = field(default_factory=set)
    """Of the spans that are complete with it."""


def _dense_step(scheduler: Any) -> _DenseStep:
    step = getattr(scheduler, _STEP, None)
    if step is None or step.number != scheduler.current_step:
        step = _DenseStep(scheduler.current_step)
        setattr(scheduler, _STEP, step)
    return step


def _book_dense_rows(scheduler: Any, spans: list[RequestSpan], computed: int, tokens: int, part: _Part | None) -> None:
    step, end = _dense_step(scheduler), computed + tokens
    for item in spans:
        if computed < item.span.end <= end:
            step.keys.add(item.key)
            if part is None:
                step.rows += item.extra_rows
    if part is not None:
        step.part_rows += part.item.rows_between(computed, end)
        if tokens and computed == part.item.span.start:
            step.begun += part.item.rows


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
    spans = dense_request_spans(request)
    allowed = _usable_hit(spans, num_tokens, scheduler.block_size, _dense_step(scheduler).keys)
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
