"""Stage 1 on pixels, in the multimodal processor: still cells leave the request before anything is encoded."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from vllm_prune.budget import stage1_limits
from vllm_prune.config import PruneConfig, PruneConfigError
from vllm_prune.methods.still_cells import (
    StillPlan,
    describe_cells,
    lower_to,
    plan_changes,
    plan_runs,
    plan_segments,
    raise_to,
)


@dataclass(frozen=True)
class PixelFormat:
    """How a model's video processor lays out pixels."""

    merge: int
    """Patches along a side of a cell."""
    patch: int
    """Pixels along a side of a patch."""
    scale: tuple[float, ...]
    """Grey levels per unit of a pixel value, for each colour."""
    black: tuple[float, ...]
    """Grey level of a pixel value of 0, for each colour."""

    @classmethod
    def of(cls, vision_config: Any, video_processor: Any) -> PixelFormat:
        """Reads it off a model's vision configuration and Hugging Face video processor."""
        normal = video_processor.do_normalize
        deviation, mean = (
            (video_processor.image_std, video_processor.image_mean) if normal else ((1.0,) * 3, (0.0,) * 3)
        )
        factor = 1 / video_processor.rescale_factor if video_processor.do_rescale else 1.0
        scale, black = (tuple(float(channel) * factor for channel in values) for values in (deviation, mean))
        return cls(vision_config.spatial_merge_size, vision_config.patch_size, scale, black)


def plan_video(
    patches: torch.Tensor, grid: tuple[int, int, int], config: PruneConfig, pixels: PixelFormat
) -> StillPlan:
    """What of a video is encoded: the cells that are not still, and as many as the configuration's limits allow.

    Args:
        patches: All of it, [T * H * W * merge**2, ...].
        grid: (T, H, W) in cells.
        config: Its configuration, with stage 1 on pixels.
        pixels: Their layout.
    """
    stage1 = config.stage1
    assert stage1 is not None
    # Raw bytes, which vLLM normalises on the device if told to, are grey levels already.
    scale, black = torch.tensor(pixels.scale), torch.tensor(pixels.black)
    if patches.dtype == torch.uint8:
        scale, black = torch.ones_like(scale), torch.zeros_like(black)
    cells = describe_cells(patches, grid, merge=pixels.merge, patch=pixels.patch, scale=scale, black=black)
    if stage1.still == "segments":
        plan = plan_segments(cells, stage1.tau, stage1.temporal_segment_ratio)
    elif stage1.still == "previous":
        plan = plan_changes(cells, stage1.tau)
    else:
        plan = plan_runs(cells, stage1.tau)
    floor, ceiling = stage1_limits(config, plan.encoded.numel())
    return lower_to(raise_to(plan, floor), ceiling, stage1.cluster_ratio)


def keep_encoded(patches: torch.Tensor, plan: StillPlan, merge: int) -> torch.Tensor:
    """The patches of the encoded cells, in order; `patches` itself where that is all of them."""
    if bool(plan.encoded.all()):
        return patches
    cells = plan.encoded.flatten().nonzero().squeeze(1).to(patches.device)
    by_cell = patches.view(plan.encoded.numel(), -1)
    return by_cell.index_select(0, cells).view(len(cells) * merge**2, -1)


def config_for(data: Any, config: PruneConfig, pixels_field: str) -> PruneConfig:
    """The configuration by which a request's videos are pruned: `config`, or what it allows for embeddings.

    Raises:
        PruneConfigError: There is nothing to plan on, and `config` does not say what to do then.
    """
    if not config.plans_on_pixels or pixels_field in data:
        return config
    assert config.stage1 is not None
    if config.stage1.without_pixels == "encoder":
        return dataclasses.replace(config, stage1=config.stage1.after_encoder())
    raise PruneConfigError(
        'stage1.where="processor": needs pixels, and this request brings precomputed embeddings; use '
        'stage1.where="encoder", or stage1.without_pixels="encoder" to merge such videos by their features'
    )
