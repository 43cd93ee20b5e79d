"""Where prefill steps of requests with dense spans begin and end. Called by `patches/core_span_scheduling.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_prune.serving.request_spans import RequestSpan, read_spec, request_spans
from vllm_prune.spans import clip_hit, clip_to_spans

EncoderSchedule = tuple[list[int], int, int, list[int], list[int]]
"""Encoder inputs of this step, tokens, encoder budget left, inputs to load, inputs scheduled twice."""

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
    spans = request_spans(request)
    allowed = _allowed_tokens(scheduler, spans, computed, num_new_tokens)
    inputs, tokens, budget, external, duplicates = original(allowed)
    if tokens != allowed:
        tokens = clip_to_spans([item.span for item in spans], computed, computed + tokens) - computed
    _book_dense_rows(scheduler, spans, computed, tokens)
    return inputs, tokens, _true_budget(request, inputs, budget), external, duplicates


def _allowed_tokens(scheduler: Any, spans: list[RequestSpan], computed: int, num_new_tokens: int) -> int:
    end = clip_to_spans([item.span for item in spans], computed, computed + num_new_tokens)
    used, limit = _dense_rows(scheduler), scheduler.scheduler_config.max_num_batched_tokens
    for item in spans:
        if computed < item.span.end <= end and used and used + item.extra_rows > limit:
            # The rows that earlier requests have in this step's dense prefix leave no memory for these.
            return max(item.span.start - computed, 0)
    return end - computed


def _dense_rows(scheduler: Any) -> int:
    step, rows = getattr(scheduler, _STEP, (None, 0))
    return rows if step == scheduler.current_step else 0


def _book_dense_rows(scheduler: Any, spans: list[RequestSpan], computed: int, tokens: int) -> None:
    rows = sum(item.extra_rows for item in spans if computed < item.span.end <= computed + tokens)
    setattr(scheduler, _STEP, (scheduler.current_step, _dense_rows(scheduler) + rows))


def _true_budget(request: Any, inputs: list[int], budget: int) -> int:
    """vLLM counts the rows that the encoder yields; what it costs is the tokens before pruning."""
    for index in inputs:
        spec = read_spec(request.mm_features[index])
        if spec is not None:
            budget -= spec.num_tokens - spec.counts.kept
    return max(budget, 0)


def clip_prefix_hit(
    scheduler: Any, request: Any, blocks: Any, num_tokens: int, shared_prefix_boundary: int, diverged: bool
) -> tuple[Any, int, int, bool]:
    """vLLM's prefix-cache hit, cut back to before a dense span that it does not cover whole."""
    spans = [item.span for item in request_spans(request)]
    allowed = clip_hit(spans, num_tokens)
    if allowed == num_tokens:
        return blocks, num_tokens, shared_prefix_boundary, diverged
    allowed -= allowed % scheduler.block_size
    blocks = scheduler.kv_cache_manager.truncate_computed_blocks(blocks, allowed)
    return blocks, allowed, min(shared_prefix_boundary, allowed), diverged
