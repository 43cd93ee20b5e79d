"""The images and videos of a prompt, as the multimodal processor leaves them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from vllm.multimodal.processing import PromptUpdateDetails

from vllm_prune.budget import TokenCounts
from vllm_prune.config import PruneConfig
from vllm_prune.serving.api.report import IMAGE, MODALITIES, VIDEO, PromptMedium


@dataclasses.dataclass
class MediumPlaceholders(PromptUpdateDetails):
    """The placeholders of one medium, with the counts they come from (kept in vLLM's processor cache with them)."""

    counts: TokenCounts | None = None


def media_of(processed: Mapping[str, Any], counts: Mapping[str, Sequence[TokenCounts]]) -> tuple[PromptMedium, ...]:
    """All images and videos of a processed prompt, in its order."""
    media = [
        PromptMedium(modality=modality, offset=place.offset, length=place.length, counts=own)
        for modality in MODALITIES
        for place, own in itertools.zip_longest(
            processed["mm_placeholders"].get(modality, ()), counts.get(modality, ())
        )
    ]
    return tuple(sorted(media, key=lambda medium: medium.offset))


def chosen_inside(media: Sequence[PromptMedium], config: PruneConfig) -> list[PromptMedium]:
    """Those of which the question chooses tokens inside the decoder. `config`: the request's."""
    asked = {VIDEO: config.chooses_inside, IMAGE: config.image is not None and config.image.choice.chooses_inside}
    return [medium for medium in media if asked[medium.modality] and not _is_whole_image(medium)]


def _is_whole_image(medium: PromptMedium) -> bool:
    return medium.modality == IMAGE and medium.counts is not None and medium.counts.kept == medium.counts.total
