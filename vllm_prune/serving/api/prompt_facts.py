"""What the multimodal processor knows of a prompt with media. Lives in the API server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_prune.budget import TokenCounts
from vllm_prune.config import PruneConfig
from vllm_prune.layout import MediumLayout
from vllm_prune.spans import TurnFormat

FACTS_KEY = "prune_facts"
"""Key of the processed input under which the processor leaves the `PromptFacts` of a request with media to prune."""

VIDEO, IMAGE = MODALITIES = ("video", "image")
FramesSeen = tuple[int, int] | None
"""Frames of a video that the model is shown, and those of its file; None where nobody knows."""


@dataclass(frozen=True, kw_only=True)
class PromptMedium:
    """An image or a video of a prompt."""

    modality: str
    offset: int
    """Index of its first placeholder in the prompt."""
    length: int
    """Number of its placeholders."""
    counts: TokenCounts | None
    """None of an image that no configuration is about."""
    frames: FramesSeen = None
    """Of a video."""
    seconds: tuple[float, ...] | None = None
    """Of a video, when each step of its grid begins, by its metadata."""
    layout: MediumLayout | None = None
    """Unpruned; None of an image that no configuration is about."""


@dataclass(frozen=True, kw_only=True)
class PromptFacts:
    """What the multimodal processor knows of a request with videos, or images to prune."""

    config: PruneConfig
    media: tuple[PromptMedium, ...]
    """All images and videos, in the order of the prompt, by which workers number them."""
    prompt_len: int
    processor_s: float
    """Time of the processor: resizing, patches, and stage 1 where it looks at the pixels."""
    turn: TurnFormat | None = None
    """How questions end."""
    step_seconds: Callable[[MediumLayout], Sequence[float] | None] = field(default=lambda _: None, compare=False)
    """When each step of a video's grid begins, as the model is told, in seconds; None where it is not."""
    image_parts: Callable[[MediumLayout], Sequence[tuple[int, int]]] = field(default=lambda _: [], compare=False)
    """(h, w) of the pictures, one after the other, whose cells an image has."""

    def counts(self, modality: str | None = None) -> list[TokenCounts]:
        """Of the media of one kind, or of all, that a configuration is about."""
        return [medium.counts for _, medium in self.numbered(modality) if medium.counts is not None]

    def numbered(self, modality: str | None = None) -> list[tuple[int, PromptMedium]]:
        """The same media with their numbers in the prompt."""
        known = [(i, medium) for i, medium in enumerate(self.media) if medium.counts is not None]
        return [(i, medium) for i, medium in known if modality in (None, medium.modality)]

    @property
    def modalities(self) -> list[str]:
        """Which of "video" and "image" there are of these."""
        return [modality for modality in MODALITIES if self.numbered(modality)]

    def config_of(self, modality: str) -> PruneConfig:
        """What says how media of one kind are pruned."""
        if modality == VIDEO:
            return self.config.of_videos
        return PruneConfig() if self.config.image is None else self.config.image.choice


def facts_of(prompt: Any) -> PromptFacts | None:
    """What is known of a processed prompt, as the engine gets it; None if it has no such media."""
    return prompt.get(FACTS_KEY) if isinstance(prompt, dict) else None
