"""Refuses prompts whose question cannot be computed together with its video; runs in the API server."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_prune.budget import TokenCounts
from vllm_prune.config import PruneConfigError
from vllm_prune.serving.api.prompt_facts import PromptMedium
from vllm_prune.serving.wire.settings import StepLimits
from vllm_prune.spans import Span, TurnFormat, dense_spans, longest_piece


def check_spans(prompt: Sequence[int], media: Sequence[PromptMedium], turn: TurnFormat, limits: StepLimits) -> None:
    """Checks every dense span of a processed prompt.

    Args:
        prompt: Token ids.
        media: Those whose tokens the question chooses, in their order.
        turn: How turns end.
        limits: Of a step.

    Raises:
        PruneConfigError: A medium without text after it, or a span too long for a step.
    """
    chosen = [(medium.offset, medium.length, medium.counts) for medium in media if medium.counts is not None]
    for span in dense_spans(prompt, [(offset, length) for offset, length, _ in chosen], turn):
        inside = [each for each in chosen if span.start <= each[0] < span.end]
        _check_question(span, [(offset, length) for offset, length, _ in inside])
        counts = [each for *_, each in inside]
        if limits.dense_tokens is not None:
            _check_dense_tokens(span, counts, limits.dense_tokens)
        if limits.tokens is not None:
            cuts = [(offset, length) for offset, length, c in inside if limits.several_steps and c.kept < c.entering]
            _check_step_tokens(span, counts, limits.tokens, longest_piece(span, cuts))


def check_one_step(prompt: Sequence[int], media: Sequence[PromptMedium], turn: TurnFormat, limits: StepLimits) -> None:
    """Checks a processed prompt whose log-probabilities are asked for.

    vLLM takes these from each step's output; rows of a span over several steps have theirs in its last one only.

    Args:
        prompt: Token ids.
        media: As for `check_spans`.
        turn: How turns end.
        limits: Of a step.

    Raises:
        PruneConfigError: A span is of more tokens than a step.
    """
    places = [(medium.offset, medium.length) for medium in media if medium.counts is not None]
    tokens = max((span.end - span.start for span in dense_spans(prompt, places, turn)), default=0)
    if limits.tokens is not None and tokens > limits.tokens:
        raise PruneConfigError(
            f"max_num_batched_tokens={limits.tokens}: prompt_logprobs need what is kept of a video and its question in "
            f"one step, {tokens} tokens; start the server with --max-num-batched-tokens {tokens} or more, leave out "
            f"prompt_logprobs, or keep fewer tokens"
        )


def _check_question(span: Span, videos: list[tuple[int, int]]) -> None:
    if max(offset + length for offset, length in videos) >= span.end:
        raise PruneConfigError(
            'prune.method="attention": the prompt ends in a video, so no text can choose its tokens; put the question '
            "after the video, or choose a query-free method"
        )


def _check_dense_tokens(span: Span, counts: list[TokenCounts], max_dense_tokens: int) -> None:
    tokens = span.end - span.start + sum(c.entering - c.kept for c in counts)
    if tokens > max_dense_tokens:
        raise PruneConfigError(
            f"dense_tokens={max_dense_tokens}: a video and its question have {tokens} tokens before the question "
            f"chooses ({sum(c.entering for c in counts)} of the video); start the server with --prune-dense-tokens "
            f"{tokens} or more, or send fewer frames, a smaller stage1.cluster_ratio or a shorter question"
        )


def _check_step_tokens(span: Span, counts: list[TokenCounts], max_step_tokens: int, piece: int) -> None:
    if piece <= max_step_tokens:
        return
    start = f"start the server with --max-num-batched-tokens {piece} or more"
    if piece == span.end - span.start:
        raise PruneConfigError(
            f"max_num_batched_tokens={max_step_tokens}: what is kept of a video and its question are {piece} tokens, "
            f"prefilled in one step ({sum(c.kept for c in counts)} of the video); {start}, or keep fewer tokens"
        )
    raise PruneConfigError(
        f"max_num_batched_tokens={max_step_tokens}: text beside a video has {piece} tokens, prefilled in one step, "
        f"since it chooses of the video; {start}, or shorten it"
    )
