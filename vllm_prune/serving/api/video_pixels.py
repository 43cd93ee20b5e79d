"""What of a request's video pixels goes to the engine: all of them, or what a plan on them keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vllm_prune.config import PruneConfig
from vllm_prune.methods.still_cells import StillPlan
from vllm_prune.serving.api.grouped_video import GroupedVideo, whole_pixels
from vllm_prune.serving.api.pixel_plan import (
    PixelFormat,
    describe_video,
    keep_cells,
    keep_encoded,
    plan_cells,
    plan_video,
)

WHOLE_BYTES = 64 << 20
"""Pixels of a video up to which a plan is made of all at once. Those of a longer one are made twice, a group at a time:
for the plan, and for what it keeps. That takes longer, and no more memory than what is kept."""


def join(pixels: list[torch.Tensor]) -> torch.Tensor:
    """Patches of all videos of a request; a single one is not copied."""
    return pixels[0] if len(pixels) == 1 else torch.cat(pixels)


def with_values(without: Any, videos: Sequence[GroupedVideo]) -> Any:
    """Pixels of all videos, as the model has them: rows one after the other, or those of each video by themselves.

    Args:
        without: What vLLM made of the processor's rows without values.
        videos: That the processor handed over.
    """
    if isinstance(without, torch.Tensor) and without.ndim == 1 + len(videos[0].row_shape):
        return whole_pixels(videos)
    return [video.whole() for video in videos]


def whole_videos(patches: torch.Tensor, grids: torch.Tensor) -> list[GroupedVideo]:
    """Videos that the Hugging Face processor took whole: `patches` of all, and their `grids` [n, 3] in patches."""
    own = patches.split(grids.prod(-1).tolist())
    return [GroupedVideo.of_patches(each, (t, h, w)) for each, (t, h, w) in zip(own, grids.tolist(), strict=True)]


def keep_planned(
    videos: list[GroupedVideo], config: PruneConfig, pixels: PixelFormat
) -> tuple[list[StillPlan], torch.Tensor]:
    """Plans of all videos, and the patches of their encoded cells."""
    found = [
        _in_groups(video, config, pixels) if _is_long(video) else _at_once(video, config, pixels) for video in videos
    ]
    return [plan for plan, _ in found], join([kept for _, kept in found])


def _is_long(video: GroupedVideo) -> bool:
    return len(video.groups) > 1 and video.num_bytes > WHOLE_BYTES


def _at_once(video: GroupedVideo, config: PruneConfig, pixels: PixelFormat) -> tuple[StillPlan, torch.Tensor]:
    patches = video.whole()
    t, h, w = video.grid_thw
    plan = plan_video(patches, (t, h // pixels.merge, w // pixels.merge), config, pixels)
    return plan, keep_encoded(patches, plan, pixels.merge)


def _in_groups(video: GroupedVideo, config: PruneConfig, pixels: PixelFormat) -> tuple[StillPlan, torch.Tensor]:
    _, h, w = (size // pixels.merge for size in video.grid_thw)
    described = [
        describe_video(video.pixels(group), (group.stop - group.start, h, w), pixels) for group in video.groups
    ]
    plan = plan_cells(torch.cat(described), config)
    unit, kept, done = pixels.merge**2, None, 0
    for group in video.groups:
        encoded = plan.encoded[group]
        if not bool(encoded.any()):
            continue
        patches = keep_cells(video.pixels(group), encoded, pixels.merge)
        if kept is None:
            kept = video.room(int(plan.encoded.sum()) * unit)
        kept[done : done + len(patches)], done = patches, done + len(patches)
    assert kept is not None  # the first step is always encoded
    return plan, kept
