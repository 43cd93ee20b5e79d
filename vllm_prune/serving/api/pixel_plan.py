"""Stage 1 on pixels, in the multimodal processor: still cells leave the request before anything is encoded."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from vllm_prune.budget import stage1_limits
from vllm_prune.config import PruneConfig, PruneConfigError
from vllm_prune.methods.same_cells import cell_levels, plan_same
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
    """How a model's video or image processor lays out pixels."""

    merge: int
    """Patches along a side of a cell."""
    patch: int
    """Pixels along a side of a patch."""
    scale: tuple[float, ...]
    """Grey levels per unit of a pixel value, for each colour."""
    black: tuple[float, ...]
    """Grey level of a pixel value of 0, for each colour."""

    @classmethod
    def of(cls, vision_config: Any, processor: Any) -> PixelFormat:
        """Reads it off a model's vision configuration and Hugging Face video or image processor."""
        normal = processor.do_normalize
        deviation, mean = (processor.image_std, processor.image_mean) if normal else ((1.0,) * 3, (0.0,) * 3)
        factor = 1 / processor.rescale_factor if processor.do_rescale else 1.0
        scale, black = (tuple(float(channel) * factor for channel in values) for values in (deviation, mean))
        return cls(vision_config.spatial_merge_size, vision_config.patch_size, scale, black)

    def levels(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`scale` and `black` of these patches, [channels] each."""
        scale, black = torch.tensor(self.scale), torch.tensor(self.black)
        # Raw bytes, which vLLM normalises on the device if told to, are grey levels already.
        return (torch.ones_like(scale), torch.zeros_like(black)) if patches.dtype == torch.uint8 else (scale, black)


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
    return plan_cells(describe_video(patches, grid, pixels), config)


def describe_video(patches: torch.Tensor, grid: tuple[int, int, int], pixels: PixelFormat) -> torch.Tensor:
    """What of a video, or of some steps of it, a plan is made of; see `describe_cells`."""
    scale, black = pixels.levels(patches)
    return describe_cells(patches, grid, merge=pixels.merge, patch=pixels.patch, scale=scale, black=black)


def plan_cells(cells: torch.Tensor, config: PruneConfig) -> StillPlan:
    """As `plan_video`, of `cells` as `describe_video` describes them."""
    stage1 = config.stage1
    assert stage1 is not None
    if stage1.still == "segments":
        plan = plan_segments(cells, stage1.tau, stage1.temporal_segment_ratio)
    elif stage1.still == "previous":
        plan = plan_changes(cells, stage1.tau)
    else:
        plan = plan_runs(cells, stage1.tau)
    floor, ceiling = stage1_limits(config, plan.encoded.numel())
    return lower_to(raise_to(plan, floor), ceiling, stage1.cluster_ratio)


def plan_image(patches: torch.Tensor, grid: tuple[int, int, int], within: int, pixels: PixelFormat) -> torch.Tensor:
    """Which cells of an image are encoded, [H * W] bool: those that differ from what their neighbour shows.

    Args:
        patches: All of it, [H * W * merge**2, ...].
        grid: (1, H, W) in cells.
        within: Grey levels by which a cell may differ and be the same.
        pixels: Their layout.
    """
    scale, black = pixels.levels(patches)
    channels = len(pixels.scale)
    frames = patches.shape[1] // (channels * pixels.patch**2)
    levels = cell_levels(patches, merge=pixels.merge, frames=frames, scale=scale, black=black)
    return plan_same(levels, grid[1:], within).encoded


def keep_encoded(patches: torch.Tensor, plan: StillPlan, merge: int) -> torch.Tensor:
    """The patches of a video's encoded cells, in order; `patches` itself where that is all of them."""
    return keep_cells(patches, plan.encoded, merge)


def keep_cells(patches: torch.Tensor, encoded: torch.Tensor, merge: int) -> torch.Tensor:
    """The patches of the cells that are `encoded` [N], in order; `patches` itself where that is all of them."""
    if bool(encoded.all()):
        return patches
    cells = encoded.flatten().nonzero().squeeze(1).to(patches.device)
    by_cell = patches.view(encoded.numel(), -1)
    return by_cell.index_select(0, cells).view(len(cells) * merge**2, -1)


def encoded_cells(encoded: torch.Tensor | None) -> torch.Tensor:
    """Indices [M] (int32) of the cells that are encoded; empty where nobody looked at the pixels (None)."""
    if encoded is None:
        return torch.empty(0, dtype=torch.int32)
    return encoded.flatten().nonzero().squeeze(1).to(torch.int32)


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
