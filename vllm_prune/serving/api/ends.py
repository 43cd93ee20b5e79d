"""How a request with videos ended, and so what may be said of it. Lives in the API server."""

from __future__ import annotations

from typing import Any

from vllm.v1.engine import FinishReason

DONE, ERROR, UNFINISHED = "done", "error", "unfinished"
"""Answered; ended by an error; ended by nobody's wish but the server's, such as `pause_generation`."""

_STATES = {FinishReason.ERROR: ERROR, FinishReason.ABORT: UNFINISHED}


def state_of(finish_reason: FinishReason | None) -> str:
    """DONE, ERROR or UNFINISHED.

    >>> state_of(FinishReason.LENGTH), state_of(FinishReason.ABORT)
    ('done', 'unfinished')
    """
    return DONE if finish_reason is None else _STATES.get(finish_reason, DONE)


def worse(one: str, other: str) -> str:
    """Of two states, the one that a whole of both is in.

    >>> worse("done", "error"), worse("unfinished", "done")
    ('error', 'unfinished')
    """
    return max(one, other, key=(DONE, UNFINISHED, ERROR).index)


def engine_seconds(stats: Any, *, answered: bool) -> dict[str, float]:
    """vLLM's own times of a request, by stage; one that lacks its beginning or end is absent.

    Args:
        stats: vLLM's `RequestStateStats`; a stamp that was never taken is 0 in it.
        answered: Whether there was a token. vLLM stamps the "first token" of an error, too.
    """
    stamps = {"queue": (stats.queued_ts, stats.scheduled_ts)}
    if answered:
        stamps["prefill"] = (stats.scheduled_ts, stats.first_token_ts)
        stamps["decode"] = (stats.first_token_ts, stats.last_token_ts)
    return {stage: end - begin for stage, (begin, end) in stamps.items() if begin and end}
