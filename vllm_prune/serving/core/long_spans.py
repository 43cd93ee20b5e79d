"""Dense spans of more rows than a step computes: they stretch over several steps, between which others decode.

To vLLM such a span is a chunked prefill: every step computes some of its tokens, and with each placeholder of a medium
the dense rows that the placeholder's row of the encoder cache holds. What the span keeps is known in its last step
only, and so only then are its blocks filled: until then they are nobody's prefix.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import Any

from vllm.v1.kv_cache_interface import FullAttentionSpec

from vllm_prune.serving.core.spans import RequestSpan, dense_request_spans
from vllm_prune.serving.wire.decoder_layers import pruning_layers
from vllm_prune.serving.wire.long_spans import ATTRIBUTE, LongSpan
from vllm_prune.serving.wire.settings import StepLimits, read_step_limits


def is_long(item: RequestSpan, request: Any, limits: StepLimits) -> bool:
    """Whether a span stretches over several steps."""
    if limits.tokens is None or not limits.several_steps or not item.media:
        return False
    return item.rows > limits.tokens and not _asks_of_prompt(request)


def _asks_of_prompt(request: Any) -> bool:
    """Whether it asks for log-probabilities of its prompt.

    vLLM takes them from each step's output, and rows of a long span have theirs in its last step only.
    """
    params = request.sampling_params
    return params is not None and params.prompt_logprobs is not None


def long_span_at(request: Any, computed: int, limits: StepLimits) -> RequestSpan | None:
    """The long span that a request with `computed` tokens is in the middle of."""
    for item in dense_request_spans(request):
        if item.span.start < computed < item.span.end and is_long(item, request, limits):
            return item
    return None


def rows_under_way(scheduler: Any, but: Any, limits: StepLimits) -> int:
    """Dense rows for which the workers hold memory from step to step, of all requests but one."""
    others = (request for request in scheduler.running if request is not but)
    found = (long_span_at(request, request.num_computed_tokens, limits) for request in others)
    return sum(item.rows for item in found if item is not None)


def end_of_part(item: RequestSpan, computed: int, most_tokens: int, most_rows: int) -> int:
    """Where a step that goes on with a long span ends: in a medium, or with the span; `computed` if it cannot go on.

    Args:
        item: The span.
        computed: Where the step begins.
        most_tokens: That the step may compute.
        most_rows: Dense rows that it may; one placeholder's are always allowed.
    """
    limit, end = computed + most_tokens, item.span.end
    # What is kept runs through the layers above in the last step.
    if end <= limit and item.rows_between(computed, end) + end - item.span.start <= most_rows:
        return end
    ends = [range(max(medium.offset, computed) + 1, min(medium.end, limit + 1)) for medium in item.media]
    ends = [inside for inside in ends if inside]
    for inside in reversed(ends):
        fitting = bisect.bisect_right(inside, most_rows, key=lambda end: item.rows_between(computed, end))
        if fitting:
            return inside[fitting - 1]
    if ends:
        return ends[0][0]
    return end if end <= limit else computed


def tokens_to_cache(request: Any, computed: int) -> int:
    """Of `computed` tokens of a request those whose blocks may be found by others."""
    for item in dense_request_spans(request):
        if item.span.start < computed < item.span.end:
            return item.span.start
    return computed


def tell_workers(scheduler: Any, output: Any) -> None:
    """Leaves with a step's `SchedulerOutput` which long spans are under way, begun or ended in it included."""
    limits = read_step_limits(scheduler.vllm_config.model_config.hf_config)
    found = list(_of_step(scheduler, output, limits))
    if found:
        setattr(output, ATTRIBUTE, found)


def _of_step(scheduler: Any, output: Any, limits: StepLimits) -> Iterator[LongSpan]:
    if not limits.several_steps:
        return
    groups = scheduler.kv_cache_config.kv_cache_groups
    keyed = next((i for i, group in enumerate(groups) if isinstance(group.kv_cache_spec, FullAttentionSpec)), 0)
    size = groups[keyed].kv_cache_spec.block_size
    for request in scheduler.running:
        after = request.num_computed_tokens  # vLLM has already moved on by what it scheduled
        before = after - output.num_scheduled_tokens.get(request.request_id, 0)
        for item in dense_request_spans(request):
            if before < item.span.end and after > item.span.start and is_long(item, request, limits):
                block = scheduler.kv_cache_manager.get_block_ids(request.request_id)[keyed][item.span.start // size]
                yield LongSpan(block, size, item.span.start, item.rows, _first_layer(item, scheduler))


def _first_layer(item: RequestSpan, scheduler: Any) -> int:
    config = scheduler.vllm_config.model_config
    return min(pruning_layers(medium.config, config)[0] for medium in item.media)
