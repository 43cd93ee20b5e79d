"""The images and videos of a prompt, as the multimodal processor leaves them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vllm.multimodal.parse import MultiModalDataItems, VideoProcessorItems
from vllm.multimodal.processing import PromptUpdateDetails

from vllm_prune.budget import TokenCounts
from vllm_prune.config import PruneConfig
from vllm_prune.layout import MediumLayout
from vllm_prune.serving.api.prompt_facts import IMAGE, MODALITIES, VIDEO, FramesSeen, PromptMedium


class VideoSeen(NamedTuple):
    """What the model is shown of a video, as `PromptMedium` has it."""

    frames: FramesSeen = None
    seconds: tuple[float, ...] | None = None


@dataclasses.dataclass
class MediumPlaceholders(PromptUpdateDetails):
    """The placeholders of one medium, with what they come from (kept in vLLM's processor cache with them)."""

    counts: TokenCounts | None = None
    layout: MediumLayout = dataclasses.field(kw_only=True)


def media_of(
    processed: Mapping[str, Any], places: Mapping[str, Sequence[MediumPlaceholders]], videos: Sequence[VideoSeen]
) -> tuple[PromptMedium, ...]:
    """All images and videos of a processed prompt, in its order. `videos`: what is seen of them; none of embeddings."""
    media = [
        PromptMedium(
            modality=modality,
            offset=place.offset,
            length=place.length,
            counts=own and own.counts,
            **(seen or VideoSeen())._asdict(),
            layout=own and own.layout,
        )
        for modality in MODALITIES
        for place, own, seen in itertools.zip_longest(
            processed["mm_placeholders"].get(modality, ()),
            places.get(modality, ()),
            videos if modality == VIDEO else (),
        )
    ]
    return tuple(sorted(media, key=lambda medium: medium.offset))


def metadata_of(videos: VideoProcessorItems) -> list[dict[str, Any] | None]:
    """Of every video."""
    return videos.metadata if isinstance(videos.metadata, list) else [videos.metadata] * videos.get_count()


def videos_seen(
    items: MultiModalDataItems, places: Mapping[str, Sequence[MediumPlaceholders]], frames_of_step: int
) -> list[VideoSeen]:
    """Of every video of a request: nothing of one of which only an identity is sent, and of embeddings.

    Args:
        items: Its media.
        places: Their placeholders by modality.
        frames_of_step: Frames that share a step of the grid.
    """
    videos = items.get(VIDEO)
    if not isinstance(videos, VideoProcessorItems):
        return []
    seen: list[VideoSeen] = []
    for video, metadata, place in zip(videos.get_all(), metadata_of(videos), places.get(VIDEO, ()), strict=False):
        frames = video[0] if isinstance(video, tuple) else video
        given = 0 if frames is None else len(frames)
        # Hugging Face's processor may have sampled once more.
        shown = min(given, place.layout.grid[0] * frames_of_step)
        if not shown:
            seen.append(VideoSeen())
            continue
        seconds = _step_seconds(metadata, given, frames_of_step) if shown == given else None
        seen.append(VideoSeen((shown, max((metadata or {}).get("total_num_frames") or 0, given)), seconds))
    return seen


def _step_seconds(metadata: dict[str, Any] | None, frames: int, frames_of_step: int) -> tuple[float, ...] | None:
    """When each step of a video's grid begins, by its metadata, as vLLM's loaders give them.

    >>> _step_seconds({"fps": 10.0, "frames_indices": [0, 5, 10]}, 3, 2)
    (0.0, 1.0)
    """
    fps, indices = (metadata or {}).get("fps"), (metadata or {}).get("frames_indices")
    if not fps or indices is None or len(indices) != frames:
        return None
    return tuple(float(index) / fps for index in indices[::frames_of_step])


def layouts_of(places: Mapping[str, Sequence[MediumPlaceholders]]) -> list[MediumLayout]:
    """Of all media, whose placeholders are given by modality."""
    return [place.layout for own in places.values() for place in own]


def chosen_inside(media: Sequence[PromptMedium], config: PruneConfig) -> list[PromptMedium]:
    """Those of which the question chooses tokens inside the decoder. `config`: the request's."""
    asked = {VIDEO: config.chooses_inside, IMAGE: config.image is not None and config.image.choice.chooses_inside}
    return [medium for medium in media if asked[medium.modality] and not _is_whole_image(medium)]


def _is_whole_image(medium: PromptMedium) -> bool:
    return medium.modality == IMAGE and medium.counts is not None and medium.counts.kept == medium.counts.total
