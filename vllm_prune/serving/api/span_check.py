"""Refuses prompts whose question cannot be computed together with its video; runs in the API server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_prune.budget import TokenCounts
from vllm_prune.config import PruneConfigError
from vllm_prune.spans import Span, TurnFormat, dense_spans


def check_spans(
    processed: Mapping[str, Any], counts: Sequence[TokenCounts], turn: TurnFormat, max_step_tokens: int | None
) -> None:
    """Checks every dense span of a processed prompt.

    Args:
        processed: What vLLM's processor returns: token ids and placeholder ranges.
        counts: Of its videos, in their order.
        turn: How turns end.
        max_step_tokens: The scheduler's `max_num_batched_tokens`, if known.

    Raises:
        PruneConfigError: A video without text after it, or a span too long for a step.
    """
    prompt = processed["prompt_token_ids"]
    ranges = [(video.offset, video.length) for video in processed["mm_placeholders"].get("video", ())]
    for span in dense_spans(prompt, sorted(ranges), turn):
        inside = [(r, c) for r, c in zip(ranges, counts, strict=True) if span.start <= r[0] < span.end]
        _check_question(span, [r for r, _ in inside])
        if max_step_tokens is not None:
            _check_length(span, [c for _, c in inside], max_step_tokens)


def _check_question(span: Span, videos: list[tuple[int, int]]) -> None:
    if max(offset + length for offset, length in videos) >= span.end:
        raise PruneConfigError(
            'prune.method="attention": the prompt ends in a video, so no text can choose its tokens; put the question '
            "after the video, or choose a query-free method"
        )


def _check_length(span: Span, counts: list[TokenCounts], max_step_tokens: int) -> None:
    rows = span.end - span.start + sum(c.entering - c.kept for c in counts)
    if rows > max_step_tokens:
        raise PruneConfigError(
            f"max_num_batched_tokens={max_step_tokens}: a video and its question need {rows} rows in one step "
            f"({sum(c.entering for c in counts)} video tokens before the question chooses); start the server with "
            f"--max-num-batched-tokens {rows} or more, or send fewer frames, a smaller stage1.cluster_ratio or a "
            f"shorter question"
        )
