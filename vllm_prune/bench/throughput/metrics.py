"""What is reported of one load, and how it is called and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A column: its key in the JSON, its title with the unit, and its digits after the point."""

    key: str
    title: str
    digits: int


def _latencies(key: str, title: str) -> list[Metric]:
    statistics = (("mean", "mean"), ("median", "median"), ("p99", "P99"))
    return [Metric(key=f"{key}_{short}_ms", title=f"{title} {long}, ms", digits=1) for short, long in statistics]


ACCEPTED = "drafts_accepted_percent"
"""Of servers with speculative decoding, the one metric that not every server has."""
METRICS = (
    *_latencies("ttft", "TTFT"),
    *_latencies("tpot", "TPOT"),
    *_latencies("itl", "ITL"),
    Metric(key="requests_per_s", title="req/s", digits=3),
    Metric(key="prompt_tokens", title="prompt tokens", digits=0),
    Metric(key="kv_blocks_peak", title="KV blocks at peak", digits=0),
    Metric(key=ACCEPTED, title="drafts accepted, %", digits=1),
)
BY_KEY = {metric.key: metric for metric in METRICS}


def read_metrics(measured: Mapping[str, Any], kv_blocks_peak: int | None) -> dict[str, float]:
    """Pick the metrics from a result of `vllm bench serve` and join what was read from the server.

    Args:
        measured: The result. Prompt tokens are those of the server's `usage`, the mean over the requests.
        kv_blocks_peak: KV blocks held at the peak; None, and left out, if none were seen.
    """
    values = {
        f"{kind}_{statistic}_ms": float(measured[f"{statistic}_{kind}_ms"])
        for kind in ("ttft", "tpot", "itl")
        for statistic in ("mean", "median", "p99")
    }
    values["requests_per_s"] = float(measured["request_throughput"])
    values["prompt_tokens"] = measured["total_input_tokens"] / measured["completed"]
    if (accepted := measured.get("spec_decode_acceptance_rate")) is not None:
        values[ACCEPTED] = float(accepted)
    if kv_blocks_peak is not None:
        values["kv_blocks_peak"] = float(kv_blocks_peak)
    return values
