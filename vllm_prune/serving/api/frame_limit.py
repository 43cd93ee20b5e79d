"""Takes frames out of videos that are arrays, or lists of pictures, until what is kept fits. Lives in the API server.

Of a file, as many were sampled as fit (`frame_sampling.py`), and all of them stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import MultiModalDataItems, VideoProcessorItems
from vllm.multimodal.video import VIDEO_LOADER_REGISTRY, VideoBackend
from vllm.multimodal.video_decoders.base import VideoSourceMetadata

from vllm_prune.config import PruneConfig, brief
from vllm_prune.media.errors import UnusableVideo
from vllm_prune.serving.api.frame_sampling import FrameSampler, family_loader, frame_sampler, sampled, takes_a_number
from vllm_prune.serving.api.prompt_media import metadata_of

if TYPE_CHECKING:
    from vllm_prune.serving.api.processor import PruningProcessorMixin


def limit_frames(
    processor: PruningProcessorMixin, items: MultiModalDataItems, config: PruneConfig, options: Mapping[str, Any]
) -> MultiModalDataItems:
    """A request's media, its videos with no more frames than `config` allows.

    Args:
        processor: The model's.
        items: Media, unprocessed.
        config: The request's, resolved.
        options: The Hugging Face processor's.

    Raises:
        PruneConfigError: Even the fewest frames keep too much.
        UnusableVideo: A video's metadata is of another number of frames.
    """
    videos = items.get("video")
    if config.frames is None or not isinstance(videos, VideoProcessorItems):
        return items
    sampler = frame_sampler(processor, config, options, {})
    known = zip(videos.data, metadata_of(videos), strict=True)
    limited = [_limited(processor, sampler, video, metadata) for video, metadata in known]
    new = VideoProcessorItems([video for video, _ in limited], metadata=[own for _, own in limited])
    return MultiModalDataItems({**items, "video": new})


def _limited(processor: Any, sampler: FrameSampler, video: Any, metadata: Any) -> tuple[Any, Any]:
    """A video and its metadata, with as many of its frames as the sampler's configurations allow."""
    frames = video[0] if isinstance(video, tuple) else video
    plain = frames.media if isinstance(frames, MediaWithBytes) else frames
    if plain is None or len(plain) == 0:
        return video, metadata
    total = len(plain)
    count = rounded = total + -total % processor.frames_of_step
    size = VideoProcessorItems([plain]).get_frame_size(0)
    for budget in sampler.budgets:
        count = min(count, budget.count((size.width, size.height), rounded))
    if count >= total:
        return video, metadata
    chosen = _spaced(processor, total, count)
    left = plain[chosen] if isinstance(plain, torch.Tensor | np.ndarray) else [plain[i] for i in chosen]
    if isinstance(frames, MediaWithBytes):
        left = MediaWithBytes(left, frames.original_bytes)
    if metadata is not None:
        known = _indices(metadata, total)
        metadata = {**metadata, "frames_indices": [int(known[i]) for i in chosen], "do_sample_frames": False}
    return ((left, metadata) if isinstance(video, tuple) else left), metadata


def _indices(metadata: Mapping[str, Any], total: int) -> Sequence[Any]:
    """Which frame of its file each of a video's `total` frames is."""
    known = metadata.get("frames_indices")
    if known is None or len(known) == 0:
        return range(total)
    if len(known) != total:
        raise UnusableVideo(
            f"frames_indices={brief(known)}: names {len(known)} frames, and the video has {total}",
            "name each of its frames, or leave it out",
        )
    indices: Sequence[Any] = known
    return indices


def _spaced(processor: Any, total: int, count: int) -> list[int]:
    """Indices of `count` of `total` frames, as vLLM spaces those of a file."""
    kind = type(VIDEO_LOADER_REGISTRY.load(family_loader(processor)))
    if not takes_a_number(kind):
        kind = VideoBackend
    return sampled(kind, VideoSourceMetadata(total, 1.0, float(total)), count, {})
