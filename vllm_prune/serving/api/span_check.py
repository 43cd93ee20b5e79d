"""Refuses prompts whose question cannot be computed together with its video; runs in the API server."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_prune.budget import TokenCounts
from vllm_prune.config import PruneConfigError
from vllm_prune.serving.api.report import PromptMedium
from vllm_prune.spans import Span, TurnFormat, dense_spans


def check_spans(
    prompt: Sequence[int], media: Sequence[PromptMedium], turn: TurnFormat, max_step_tokens: int | None
) -> None:
    """Checks every dense span of a processed prompt.

    Args:
        prompt: Token ids.
        media: Those whose tokens the question chooses, in their order.
        turn: How turns end.
        max_step_tokens: The scheduler's `max_num_batched_tokens`, if known.

    Raises:
        PruneConfigError: A medium without text after it, or a span too long for a step.
    """
    chosen = [(medium.offset, medium.length, medium.counts) for medium in media if medium.counts is not None]
    for span in dense_spans(prompt, [(offset, length) for offset, length, _ in chosen], turn):
        inside = [each for each in chosen if span.start <= each[0] < span.end]
        _check_question(span, [(offset, length) for offset, length, _ in inside])
        if max_step_tokens is not None:
            _check_length(span, [counts for *_, counts in inside], max_step_tokens)


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
