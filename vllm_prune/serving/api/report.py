"""What a request's pruning did and took, as its response, the log and the metrics tell it. Lives in the API server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm_prune.config import PRESETS, PruneConfig
from vllm_prune.serving.api.ends import DONE
from vllm_prune.serving.api.prompt_facts import IMAGE, MODALITIES, VIDEO, PromptFacts, PromptMedium
from vllm_prune.serving.wire.features import FeatureRequest
from vllm_prune.serving.wire.notes import EncodedMedium, RequestNotes

CUSTOM = "custom"

ENCODED, ENCODER_CACHE, PREFIX_CACHE = "encoded", "encoder_cache", "prefix_cache"
"""Where a video's tokens came from: computed for this request; or found, as the encoder's output, or as KV blocks."""
WITHHELD, UNKNOWN = "withheld", "unknown"
"""In place of these: who else sent the video is nobody's business; or the request ended before its tokens came."""
_TELLING = ("processor", "encoder", "merge")
"""Stages whose time, or absence, tells whether a video was there already."""


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
    """The preset's name that `config`, which is about videos, is equal to, or "custom".

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
    asked: FeatureRequest | None = None
    """What features are to be handed out, on a server of features."""
    features: dict[str, Any] | None = None
    """What those are that were handed out (`api/features.py`)."""
    encoded: dict[int, EncodedMedium] = field(default_factory=dict)
    """By the medium's number in the prompt."""
    dense_s: float = 0.0
    choice_s: float = 0.0
    attention: list[list[int]] = field(default_factory=list)
    """Layer, heads, rows of the question, tokens of every choice that the question made."""
    cached_tokens: int = 0
    """Of the prompt, found in the prefix cache."""
    engine_s: dict[str, float] = field(default_factory=dict)
    """Times of vLLM's own: queue, prefill, decode."""
    withheld: frozenset[int] = frozenset()
    """Numbers of the media of which it must not be told whether they were there already (`api/salts.py`)."""
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
        """Name of the configuration of videos."""
        return preset_of(self.facts.config.of_videos)

    @property
    def before(self) -> int:
        """Tokens of videos and images in the unpruned prompt."""
        return self.before_of()

    @property
    def kept(self) -> int:
        """Those of the prompt."""
        return self.kept_of()

    @property
    def structure(self) -> int:
        """Tokens between those of the videos, such as timestamps, which no configuration drops."""
        return self.structure_of()

    @property
    def saved_blocks(self) -> int:
        """KV blocks that the unpruned prompt would hold in addition."""
        return self.saved_blocks_of()

    @property
    def saved_bytes(self) -> int:
        """Memory of these blocks, on all ranks together."""
        return self.saved_bytes_of()

    def before_of(self, modality: str | None = None) -> int:
        """As `before`, of one kind of media; so are the others."""
        return sum(counts.total for counts in self.facts.counts(modality))

    def kept_of(self, modality: str | None = None) -> int:
        """As `kept`."""
        return sum(counts.kept for counts in self.facts.counts(modality))

    def structure_of(self, modality: str | None = None) -> int:
        """As `structure`."""
        return sum(counts.pinned for counts in self.facts.counts(modality))

    def saved_blocks_of(self, modality: str | None = None) -> int:
        """As `saved_blocks`, were these media alone unpruned."""
        unpruned = self.facts.prompt_len + self.before_of(modality) - self.kept_of(modality)
        return self.kv.blocks(unpruned) - self.kv.blocks(self.facts.prompt_len)

    def saved_bytes_of(self, modality: str | None = None) -> int:
        """As `saved_bytes`."""
        return self.saved_blocks_of(modality) * self.kv.block_size * self.kv.token_bytes

    def sources(self, modality: str | None = None) -> list[str]:
        """Where the tokens of each medium came from."""
        media = self.facts.numbered(modality)
        return [self._source(number, medium.offset + medium.length) for number, medium in media]

    def _source(self, number: int, end: int) -> str:
        if not self.answered and number not in self.encoded:
            return UNKNOWN
        if number not in self.encoded and end <= self.cached_tokens:
            return PREFIX_CACHE  # which vLLM keeps apart by `cache_salt`
        if number in self.withheld:
            return WITHHELD
        return ENCODED if number in self.encoded else ENCODER_CACHE

    def cached(self, modality: str | None = None) -> int:
        """Tokens of media whose KV blocks were found."""
        media = [medium for _, medium in self.facts.numbered(modality)]
        return sum(min(max(self.cached_tokens - medium.offset, 0), medium.length) for medium in media)

    def stage_seconds(self) -> dict[str, float]:
        """Time by stage; stages that did not run for this request are absent."""
        seconds = {"processor": self.facts.processor_s}
        if self.encoded:
            seconds["encoder"] = sum(medium.encoder_s for medium in self.encoded.values())
            seconds["merge"] = sum(medium.merge_s for medium in self.encoded.values())
        if self.choice_s:
            seconds["choice"] = self.choice_s
        if self.attention:
            seconds["dense_prefix"] = self.dense_s
        if self.withheld:
            seconds = {stage: time for stage, time in seconds.items() if stage not in _TELLING}
        return seconds | self.engine_s

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; docs/metrics.md says what the fields mean."""
        fields: dict[str, Any] = {
            "state": self.state,
            "method": self.facts.config.method,
            "preset": self.preset,
            "config": self.facts.config.to_dict(),
        }
        for modality in MODALITIES if self.facts.numbered(IMAGE) else (VIDEO,):
            fields[f"{modality}_tokens"] = {
                "before": self.before_of(modality),
                "kept": self.kept_of(modality),
                "removed": 1 - self.kept_of(modality) / before if (before := self.before_of(modality)) else 0.0,
                "structure": self.structure_of(modality),
            }
            fields[f"{modality}s"] = [
                {**_describe(medium), "source": source}
                for (_, medium), source in zip(self.facts.numbered(modality), self.sources(modality), strict=True)
            ]
            fields[f"cached_{modality}_tokens"] = self.cached(modality)
        fields["kv_saved"] = {"blocks": self.saved_blocks, "bytes": self.saved_bytes}
        fields["seconds"] = {stage: round(seconds, 6) for stage, seconds in self.stage_seconds().items()}
        return fields


def _describe(medium: PromptMedium) -> dict[str, Any]:
    counts = medium.counts
    assert counts is not None  # of a medium that a configuration is about
    frames = {} if medium.frames is None else dict(zip(("seen", "of"), medium.frames, strict=True))
    return {
        "before": counts.total,
        "encoded": counts.encoded,
        "stage1": counts.stage1,
        "entering": counts.entering,
        "layers": list(counts.layers),
        "kept": counts.kept,
        "structure": counts.pinned,
    } | ({"frames": frames} if frames else {})
