"""What a request's pruning did and took, as its response, the log and the metrics tell it. Lives in the API server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm_prune.budget import TokenCounts
from vllm_prune.config import PRESETS, PruneConfig
from vllm_prune.serving.api.ends import DONE
from vllm_prune.serving.wire.notes import EncodedVideo, RequestNotes

FACTS_KEY = "prune_facts"
"""Key of the processed input under which the processor leaves the `PromptFacts` of a request with videos."""

CUSTOM = "custom"

ENCODED, ENCODER_CACHE, PREFIX_CACHE = "encoded", "encoder_cache", "prefix_cache"
"""Where a video's tokens came from: computed for this request; or found, as the encoder's output, or as KV blocks."""
WITHHELD, UNKNOWN = "withheld", "unknown"
"""In place of these: who else sent the video is nobody's business; or the request ended before its tokens came."""
_TELLING = ("processor", "encoder", "merge")
"""Stages whose time, or absence, tells whether a video was there already."""


@dataclass(frozen=True, kw_only=True)
class PromptFacts:
    """What the multimodal processor knows of a request with videos."""

    config: PruneConfig
    counts: tuple[TokenCounts, ...]
    ranges: tuple[tuple[int, int], ...]
    """(offset, length) of every video's placeholders in the prompt."""
    prompt_len: int
    processor_s: float
    """Time of the processor: resizing, patches, and stage 1 where it looks at the pixels."""


@dataclass(frozen=True, kw_only=True)
class KVFormat:
    """The paged cache."""

    block_size: int
    """Tokens of a block."""
    token_bytes: int
    """Keys and values of a token in all layers and on all ranks."""

    def blocks(self, tokens: int) -> int:
        """Blocks that hold `tokens`."""
        return -(-tokens // self.block_size)


def preset_of(config: PruneConfig) -> str:
    """The preset's name that `config` is equal to, or "custom".

    >>> preset_of(PruneConfig.parse("default")), preset_of(PruneConfig.parse({"preset": "default", "keep_ratio": 0.1}))
    ('default', 'custom')
    """
    return next((name for name, known in PRESETS.items() if known == config), CUSTOM)


@dataclass
class RequestReport:
    """One request; grows while it runs. Requests with several answers (`n`) share one."""

    facts: PromptFacts
    kv: KVFormat
    logged: bool = False
    """Whether it is to be logged (`--prune-log`)."""
    encoded: dict[int, EncodedVideo] = field(default_factory=dict)
    """By the video's number in the prompt."""
    dense_s: float = 0.0
    choice_s: float = 0.0
    attention: list[list[int]] = field(default_factory=list)
    """Layer, heads, rows of the question, tokens of every choice that the question made."""
    cached_tokens: int = 0
    """Of the prompt, found in the prefix cache."""
    engine_s: dict[str, float] = field(default_factory=dict)
    """Times of vLLM's own: queue, prefill, decode."""
    withheld: frozenset[int] = frozenset()
    """Numbers of the videos of which it must not be told whether they were there already (`api/salts.py`)."""
    failure: str = ""
    answered: bool = False
    """Whether it came to a token."""
    state: str = DONE
    """How it ended."""
    finished: bool = False
    searched: bool = False
    """Whether it is a beam search: many requests to the engine, one report."""

    def add(self, notes: RequestNotes) -> None:
        """Takes up what a worker said."""
        self.encoded.update(notes.encoded)
        self.dense_s += notes.dense_s
        self.choice_s += notes.choice_s
        self.attention += notes.attention
        self.failure = self.failure or notes.failure

    @property
    def preset(self) -> str:
        """Name of the configuration."""
        return preset_of(self.facts.config)

    @property
    def before(self) -> int:
        """Video tokens of the unpruned prompt."""
        return sum(counts.total for counts in self.facts.counts)

    @property
    def kept(self) -> int:
        """Video tokens of the prompt."""
        return sum(counts.kept for counts in self.facts.counts)

    @property
    def structure(self) -> int:
        """Tokens between those of the videos, such as timestamps, which no configuration drops."""
        return sum(counts.pinned for counts in self.facts.counts)

    @property
    def saved_blocks(self) -> int:
        """KV blocks that the unpruned prompt would hold in addition."""
        unpruned = self.facts.prompt_len + self.before - self.kept
        return self.kv.blocks(unpruned) - self.kv.blocks(self.facts.prompt_len)

    @property
    def saved_bytes(self) -> int:
        """Memory of these blocks, on all ranks together."""
        return self.saved_blocks * self.kv.block_size * self.kv.token_bytes

    def sources(self) -> list[str]:
        """Where the tokens of each video came from."""
        return [self._source(number, offset + length) for number, (offset, length) in enumerate(self.facts.ranges)]

    def _source(self, number: int, end: int) -> str:
        if not self.answered and number not in self.encoded:
            return UNKNOWN
        if number not in self.encoded and end <= self.cached_tokens:
            return PREFIX_CACHE  # which vLLM keeps apart by `cache_salt`
        if number in self.withheld:
            return WITHHELD
        return ENCODED if number in self.encoded else ENCODER_CACHE

    def cached_video_tokens(self) -> int:
        """Video tokens whose KV blocks were found."""
        return sum(min(max(self.cached_tokens - offset, 0), length) for offset, length in self.facts.ranges)

    def stage_seconds(self) -> dict[str, float]:
        """Time by stage; stages that did not run for this request are absent."""
        seconds = {"processor": self.facts.processor_s}
        if self.encoded:
            seconds["encoder"] = sum(video.encoder_s for video in self.encoded.values())
            seconds["merge"] = sum(video.merge_s for video in self.encoded.values())
        if self.choice_s:
            seconds["choice"] = self.choice_s
        if self.attention:
            seconds["dense_prefix"] = self.dense_s
        if self.withheld:
            seconds = {stage: time for stage, time in seconds.items() if stage not in _TELLING}
        return seconds | self.engine_s

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; docs/metrics.md says what the fields mean."""
        videos = [
            {
                "before": counts.total,
                "encoded": counts.encoded,
                "stage1": counts.stage1,
                "entering": counts.entering,
                "layers": list(counts.layers),
                "kept": counts.kept,
                "structure": counts.pinned,
                "source": source,
            }
            for counts, source in zip(self.facts.counts, self.sources(), strict=True)
        ]
        return {
            "state": self.state,
            "method": self.facts.config.method,
            "preset": self.preset,
            "config": self.facts.config.to_dict(),
            "video_tokens": {
                "before": self.before,
                "kept": self.kept,
                "removed": 1 - self.kept / max(1, self.before),
                "structure": self.structure,
            },
            "videos": videos,
            "kv_saved": {"blocks": self.saved_blocks, "bytes": self.saved_bytes},
            "cached_video_tokens": self.cached_video_tokens(),
            "seconds": {stage: round(seconds, 6) for stage, seconds in self.stage_seconds().items()},
        }
