"""Stage 1 on pixels, in the multimodal processor: still cells leave the request before anything is encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vllm_prune.config import PruneConfigError, Stage1Config
from vllm_prune.methods.still_cells import StillPlan, describe_cells, plan_runs, plan_segments, raise_to


@dataclass(frozen=True)
class PixelFormat:
    """How a model's video processor lays out pixels."""

    merge: int
    """Patches along a side of a cell."""
    patch: int
    """Pixels along a side of a patch."""
    scale: tuple[float, ...]
    """Grey levels per unit of a pixel value, for each colour."""

    @classmethod
    def of(cls, vision_config: Any, video_processor: Any) -> PixelFormat:
        """Reads it off a model's vision configuration and Hugging Face video processor."""
        deviation = video_processor.image_std if video_processor.do_normalize else (1.0,) * 3
        factor = 1 / video_processor.rescale_factor if video_processor.do_rescale else 1.0
        scale = tuple(float(channel) * factor for channel in deviation)
        return cls(vision_config.spatial_merge_size, vision_config.patch_size, scale)


def plan_video(
    patches: torch.Tensor, grid: tuple[int, int, int], stage1: Stage1Config, pixels: PixelFormat
) -> StillPlan:
    """What of a video is encoded.

    Args:
        patches: All of it, [T * H * W * merge**2, ...].
        grid: (T, H, W) in cells.
        stage1: Its configuration.
        pixels: Their layout.
    """
    # Raw bytes, which vLLM normalises on the device if told to, are grey levels already.
    scale = torch.ones(len(pixels.scale)) if patches.dtype == torch.uint8 else torch.tensor(pixels.scale)
    cells = describe_cells(patches, grid, merge=pixels.merge, patch=pixels.patch, scale=scale)
    if stage1.still == "segments":
        plan = plan_segments(cells, stage1.tau, stage1.temporal_segment_ratio)
    else:
        plan = plan_runs(cells, stage1.tau)
    return raise_to(plan, min(stage1.min_tokens or 1, plan.encoded.numel()))


def keep_encoded(patches: torch.Tensor, plan: StillPlan, merge: int) -> torch.Tensor:
    """The patches of the encoded cells, in order."""
    return patches.view(plan.encoded.numel(), merge**2, -1)[plan.encoded.flatten()].flatten(0, 1)


def require_pixels(data: Any) -> torch.Tensor:
    """The pixels of a request's videos.

    Raises:
        PruneConfigError: It brings embeddings instead.
    """
    if "pixel_values_videos" not in data:
        raise PruneConfigError(
            'stage1.where="processor": needs pixels, and this request brings precomputed embeddings; '
            'use stage1.where="encoder"'
        )
    return data["pixel_values_videos"]
