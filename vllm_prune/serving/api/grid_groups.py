"""Qwen's video processors in groups of steps: a step of the grid follows from its own frames.

Called on a whole video, they hold its frames as bytes twice and three copies in float32 at once, twenty times the bytes
of the frames that they were given. The frames' new size follows from their number and is given to every group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import BatchFeature
from transformers.image_utils import SizeDict
from transformers.video_processing_utils import BaseVideoProcessor

from vllm_prune.serving.api import grouped_video
from vllm_prune.serving.api.grouped_video import GroupedVideo, consecutive
from vllm_prune.serving.api.taken_videos import Frames, InGroups


class GridGroups(InGroups):
    """Put before a video processor of Qwen's."""

    def _grouped(
        self,
        frames: Frames,
        options: dict[str, Any],
        preprocess: Callable[..., BatchFeature],
        finish: Callable[[Any], Any],
    ) -> GroupedVideo:
        patch, steps_of = options["patch_size"], options["temporal_patch_size"]
        like = frames[:1]
        height, width = self._frame_size(len(frames), like, options) if options["do_resize"] else like.shape[-2:]
        num_steps = -(-len(frames) // steps_of)
        step_bytes = steps_of * like.shape[1] * height * width * torch.float32.itemsize

        def make(steps: slice) -> torch.Tensor:
            some = frames[steps.start * steps_of : steps.stop * steps_of]
            if options["do_resize"]:
                size = SizeDict(height=height, width=width)
                some = BaseVideoProcessor.resize(self, some[None], size, options["resample"])[0]
            made = preprocess([some], **{**options, "do_resize": False})
            pixels: torch.Tensor = finish(made["pixel_values_videos"])
            return pixels

        groups = consecutive(0, num_steps, max(grouped_video.GROUP_BYTES // step_bytes, 1))
        return GroupedVideo((num_steps, height // patch, width // patch), groups, make)

    def _frame_size(self, num_frames: int, like: torch.Tensor, options: dict[str, Any]) -> tuple[int, int]:
        """Height and width that the processor gives the frames of a video, from tensors without values."""
        video = torch.empty(1, num_frames, *like.shape[1:], dtype=like.dtype, device="meta")
        resized = self.resize(
            videos=video,
            size=options["size"],
            resample=options["resample"],
            factor=options["patch_size"] * options["merge_size"],
            temporal_factor=options["temporal_patch_size"],
            cap_pixels_per_frame=bool(options.get("cap_pixels_per_frame")),
        )
        return int(resized.shape[-2]), int(resized.shape[-1])

    def _without_values(self, videos: list[GroupedVideo]) -> dict[str, Any]:
        patches = torch.empty(sum(video.num_rows for video in videos), 0)
        return {"pixel_values_videos": patches, "video_grid_thw": torch.tensor([video.grid_thw for video in videos])}
