"""One report for a beam search, which asks the engine once for every beam and token. Lives in the API server."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

from vllm_prune.serving.api.report import RequestReport
from vllm_prune.serving.api.request_reports import conclude, new_report, searched


async def report_search(
    vllm_config: Any, prompt: Any, request_id: str, outputs: AsyncGenerator[Any, None]
) -> AsyncGenerator[Any, None]:
    """The outputs of a beam search, each with the report as `prune`.

    Queue and prefill are those of the first step; everything after it is decoding.

    Args:
        vllm_config: The engine's.
        prompt: Processed; if it has no videos, there is no report.
        request_id: The client's.
        outputs: vLLM's `RequestOutput`, the only one, not begun.
    """
    report = new_report(vllm_config, prompt)
    if report is not None:
        report.searched = True
    begin = time.monotonic()
    searched.set(report)  # the tasks of the steps inherit it
    try:
        async for output in outputs:
            searched.set(None)
            if report is not None:
                _end(report, request_id, time.monotonic() - begin)
                output.prune = report
            yield output
    finally:
        searched.set(None)


def _end(report: RequestReport, request_id: str, seconds: float) -> None:
    if report.engine_s:
        before = report.engine_s.get("queue", 0.0) + report.engine_s.get("prefill", 0.0)
        report.engine_s["decode"] = max(0.0, seconds - before)
    conclude(report, request_id)
