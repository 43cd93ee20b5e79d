"""The dense spans of a request in the engine core, and what they mean for its cache keys and its scheduling.

The patches in `patches/core_*.py` call these functions; here is what they do, there is where.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from vllm_prune.config import PruneConfig
from vllm_prune.serving.wire.request_spec import VideoSpec, read_spec
from vllm_prune.spans import Span, dense_spans

_ATTRIBUTE = "_vllm_prune_spans"


@dataclass(frozen=True)
class SpanMedium:
    """A medium of a dense span whose tokens the question chooses."""

    offset: int
    """Index of its first placeholder in the prompt."""
    length: int
    """Its placeholders, K + S."""
    rows: int
    """Its dense rows, N1 + S."""
    config: PruneConfig

    @property
    def end(self) -> int:
        """Behind its last placeholder."""
        return self.offset + self.length

    def extra_rows(self, end: int) -> int:
        """What its placeholders before prompt index `end` bring of dense rows, beyond themselves; may be negative.

        Every placeholder brings as many as its row of the encoder cache holds (`worker/carrier.py`).
        """
        count = min(max(end - self.offset, 0), self.length)
        return min(count * -(-self.rows // self.length), self.rows) - count


@dataclass(frozen=True)
class RequestSpan:
    """A dense span with what it costs and what its content depends on."""

    span: Span
    extra_rows: int
    """Rows of its dense prefix beyond its prompt tokens."""
    key: str
    """Digest of everything in the span that decides which tokens stay."""
    dense: bool
    """Whether it is a dense prefix: the question chooses inside the decoder, not before it."""
    media: tuple[SpanMedium, ...] = ()
    """Those that the question chooses of, in order."""

    @property
    def rows(self) -> int:
        """All of its dense rows."""
        return self.span.end - self.span.start + self.extra_rows

    def rows_between(self, start: int, end: int) -> int:
        """Dense rows of its prompt tokens start <= i < end."""
        return end - start + sum(medium.extra_rows(end) - medium.extra_rows(start) for medium in self.media)


def request_spans(request: Any) -> list[RequestSpan]:
    """The spans of a vLLM `Request` in which a question chooses, found once."""
    spans = getattr(request, _ATTRIBUTE, None)
    if spans is None:
        spans = _find_spans(request)
        setattr(request, _ATTRIBUTE, spans)
    return spans


def dense_request_spans(request: Any) -> list[RequestSpan]:
    """Those that are dense prefixes."""
    return [span for span in request_spans(request) if span.dense]


def _find_spans(request: Any) -> list[RequestSpan]:
    videos = [(feature, spec) for feature in request.mm_features if (spec := read_spec(feature)) is not None]
    videos = [(feature, spec) for feature, spec in videos if spec.config.query_aware]
    if not videos or request.prompt_token_ids is None:
        return []
    turn = videos[0][1].turn
    assert turn is not None  # the processor refuses such requests of models without
    ranges = [(feature.mm_position.offset, feature.mm_position.length) for feature, _ in videos]
    spans = dense_spans(request.prompt_token_ids, ranges, turn)
    return [_describe(span, request, videos) for span in spans]


def _describe(span: Span, request: Any, videos: list[tuple[Any, VideoSpec]]) -> RequestSpan:
    found = [(feature, spec) for feature, spec in videos if span.start <= feature.mm_position.offset < span.end]
    inside = [spec for _, spec in found]
    extra_rows = sum(spec.counts.entering - spec.counts.kept for spec in inside)
    dense = any(spec.config.chooses_inside for spec in inside)
    # What a learned selector makes of a question is part of what decides.
    selectors = sorted({digest for spec in inside for digest in spec.selectors})
    media = [
        (feature.mm_position.offset - span.start, feature.identifier)
        for feature in request.mm_features
        if span.start <= feature.mm_position.offset < span.end
    ]
    content = repr((request.prompt_token_ids[span.start : span.end], media, *selectors))
    chosen = tuple(
        SpanMedium(feature.mm_position.offset, feature.mm_position.length, spec.counts.carried_rows, spec.config)
        for feature, spec in found
        if spec.config.chooses_inside and spec.counts.kept < spec.counts.entering
    )
    return RequestSpan(span, extra_rows, hashlib.sha256(content.encode()).hexdigest(), dense, chosen)


def block_keys(request: Any, start: int, end: int) -> list[tuple[str, str]]:
    """Extra keys of the block that holds tokens start <= i < end.

    Kept tokens, and all text of the span after them, depend on the whole question, which may come after the block: so
    every block that shares a token with a span is keyed by the content of the whole span.
    """
    return [("prune", item.key) for item in request_spans(request) if start < item.span.end and item.span.start < end]
