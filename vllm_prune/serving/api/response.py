"""Puts a request's report into its HTTP response: the field `prune`, beside `usage`.

Streamed, the chunk that ends a choice has it, and so has the chunk with the usage, where that was asked for. Clients
that do not know the field pass it over.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from vllm_prune.serving.api.report import RequestReport

FIELD = "prune"
_PREFIX = "data: "


class WatchedOutputs:
    """vLLM's outputs of a request, and the report that they bring along."""

    def __init__(self, outputs: AsyncIterator[Any]) -> None:
        self._outputs = outputs
        self.report: RequestReport | None = None

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for output in self._outputs:
            self.report = getattr(output, FIELD, None)
            yield output


def add_to_chunk(chunk: str, report: RequestReport | None) -> str:
    """A server-sent event, with the report if it is the last of its kind; others are not even parsed."""
    if report is None or not report.finished or not _may_be_last(chunk):
        return chunk
    event = json.loads(chunk[len(_PREFIX) :])
    if any(choice.get("finish_reason") for choice in event["choices"]) or not event["choices"]:
        event[FIELD] = report.to_dict()
        return f"{_PREFIX}{json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n"
    return chunk


def _may_be_last(chunk: str) -> bool:
    return chunk.startswith(f"{_PREFIX}{{") and ('"finish_reason":"' in chunk or '"choices":[]' in chunk)
