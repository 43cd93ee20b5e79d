"""Prometheus metrics `vllm_prune:*`, on the server's own `/metrics`; docs/metrics.md describes them.

They live in the API server alone: what workers know comes with the requests' outputs. With several API servers each
process counts its own requests, and vLLM's `/metrics` adds up the processes (`PROMETHEUS_MULTIPROC_DIR`).
"""

from __future__ import annotations

from typing import Any

from prometheus_client import Counter, Histogram

from vllm_prune.config import PruneConfigError
from vllm_prune.serving.api.ends import DONE
from vllm_prune.serving.api.metrics_reasons import reason_of
from vllm_prune.serving.api.prompt_facts import VIDEO
from vllm_prune.serving.api.report import CUSTOM, RequestReport, preset_of
from vllm_prune.serving.wire.architectures import is_variant

_LABELS = ("model_name", "method", "preset", "modality")
_TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
_RATIOS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class PruneMetrics:
    """The collectors of one process; made once, as the registry allows no name twice."""

    def __init__(self) -> None:
        self.requests = Counter("vllm_prune:requests", "Finished requests with videos, or images to prune.", _LABELS)
        self.failures = Counter("vllm_prune:failures", "Requests that ended because a method failed.", _LABELS)
        self.unfinished = Counter(
            "vllm_prune:unfinished_requests", "Requests that an error or the server ended.", (*_LABELS, "state")
        )
        self.refusals = Counter("vllm_prune:refusals", "Requests refused (HTTP 4xx).", ("model_name", "reason"))
        self.lost_traces = Counter("vllm_prune:lost_traces", "Traces that could not be written.", ("model_name",))
        self.videos = Counter(
            "vllm_prune:videos", "Videos (or images), by where their tokens came from.", (*_LABELS, "source")
        )
        self.video_tokens = Histogram(
            "vllm_prune:video_tokens",
            "Tokens of a video (or image) after each stage.",
            (*_LABELS, "stage"),
            buckets=_TOKENS,
        )
        self.removed = Counter(
            "vllm_prune:removed_tokens",
            "Tokens of videos (or images) that a stage merged or dropped.",
            (*_LABELS, "stage"),
        )
        self.kept_ratio = Histogram(
            "vllm_prune:kept_ratio",
            "Share of a request's tokens of videos (or images) that stays.",
            _LABELS,
            buckets=_RATIOS,
        )
        self.stage_time = Histogram(
            "vllm_prune:stage_time_seconds", "Time of a request in a stage.", (*_LABELS, "stage"), buckets=_SECONDS
        )
        self.cached_tokens = Counter(
            "vllm_prune:cached_tokens",
            "Tokens of videos (or images) found in the prefix cache, after pruning.",
            _LABELS,
        )
        self.saved_blocks = Counter("vllm_prune:kv_blocks_saved", "KV blocks not allocated.", _LABELS)
        self.saved_bytes = Counter("vllm_prune:kv_bytes_saved", "Bytes of KV cache not allocated.", _LABELS)

    def observe(self, model_name: str, report: RequestReport) -> None:
        """Counts a request that ended."""
        for modality in report.facts.modalities:
            self._observe(model_name, report, modality)

    def _observe(self, model_name: str, report: RequestReport, modality: str) -> None:
        config = report.facts.config_of(modality)
        preset = preset_of(config) if modality == VIDEO else CUSTOM  # no preset is about images
        labels = (model_name, config.method, preset, modality)
        if report.failure:
            self.failures.labels(*labels).inc()
        if report.state != DONE:
            self.unfinished.labels(*labels, report.state).inc()
            return
        self.requests.labels(*labels).inc()
        for counts in report.facts.counts(modality):
            self._observe_medium(labels, counts)
        for source in report.sources(modality):
            self.videos.labels(*labels, source).inc()
        self.kept_ratio.labels(*labels).observe(report.kept_of(modality) / max(1, report.before_of(modality)))
        for stage, seconds in report.stage_seconds().items():
            self.stage_time.labels(*labels, stage).observe(seconds)
        self.cached_tokens.labels(*labels).inc(report.cached(modality))
        self.saved_blocks.labels(*labels).inc(report.saved_blocks_of(modality))
        self.saved_bytes.labels(*labels).inc(report.saved_bytes_of(modality))

    def _observe_medium(self, labels: tuple[str, ...], counts: Any) -> None:
        after = {"before": counts.total, "encoded": counts.encoded, "stage1": counts.stage1}
        after["entering"], after["kept"] = counts.entering, counts.kept
        for stage, tokens in after.items():
            self.video_tokens.labels(*labels, stage).observe(tokens)
        removed = {"stage1": counts.total - counts.stage1, "method": counts.stage1 - counts.entering}
        removed["layers"] = counts.entering - counts.kept
        for stage, tokens in removed.items():
            if tokens:
                self.removed.labels(*labels, stage).inc(tokens)


_metrics: PruneMetrics | None = None
_model_name = ""


def start(vllm_config: Any) -> None:
    """Registers the metrics of a server of a pruning variant."""
    global _metrics, _model_name
    if not is_variant(vllm_config.model_config.architecture):
        return
    _model_name = str(vllm_config.model_config.served_model_name)
    if _metrics is None:
        _metrics = PruneMetrics()


def observe(report: RequestReport) -> None:
    """Counts a request that ended, where there are metrics."""
    if _metrics is not None:
        _metrics.observe(_model_name, report)


def observe_lost_traces(count: int) -> None:
    """Counts traces that could not be written, where there are metrics."""
    if count and _metrics is not None:
        _metrics.lost_traces.labels(_model_name).inc(count)


def observe_refusal(error: PruneConfigError) -> None:
    """Counts a refused request, where there are metrics."""
    if _metrics is not None:
        _metrics.refusals.labels(_model_name, reason_of(error)).inc()
