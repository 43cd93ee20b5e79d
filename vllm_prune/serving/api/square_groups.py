"""Video processors that make a square of every frame, in groups of frames: LLaVA's and InternVL's.

Called on a whole video, they hold its squares in float32 at least twice before these become what the request brings:
Hugging Face's to stack videos, vLLM's own for InternVL to stack frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import BatchFeature
from transformers.video_processing_utils import BaseVideoProcessor

from vllm_prune.hook import Hooked, hook
from vllm_prune.serving.api import grouped_video
from vllm_prune.serving.api.grouped_video import GroupedVideo, consecutive
from vllm_prune.serving.api.taken_videos import TAKING, Frames, InGroups

TILES = "_videos_to_pixel_values_lst"
"""Method of vLLM's own video processor for InternVL, and of no other: squares of the frames of each of some videos."""


def frame_by_frame(num_frames: int, make: Callable[[slice], torch.Tensor]) -> GroupedVideo:
    """A video of which `make` makes squares [n, channels, height, width] of n frames; the first tells their size."""
    first = make(slice(0, 1))
    at_once = max(grouped_video.GROUP_BYTES // (first.numel() * torch.float32.itemsize), 1)
    return GroupedVideo((num_frames, 1, 1), [slice(0, 1), *consecutive(1, num_frames, at_once)], make, first)


def without_width(video: GroupedVideo) -> torch.Tensor:
    """Squares without values: text is written by how many there are, and how high."""
    return torch.empty(video.num_rows, *video.row_shape[:-1], 0)


class SquareGroups(InGroups):
    """Put before a video processor of Hugging Face's that has no grids."""

    def _grouped(
        self,
        frames: Frames,
        options: dict[str, Any],
        preprocess: Callable[..., BatchFeature],
        finish: Callable[[Any], Any],
    ) -> GroupedVideo:
        def make(some: slice) -> torch.Tensor:
            squares: torch.Tensor = finish(preprocess([frames[some]], **options)["pixel_values_videos"][0])
            return squares

        return frame_by_frame(len(frames), make)

    def _without_values(self, videos: list[GroupedVideo]) -> dict[str, Any]:
        return {"pixel_values_videos": [without_width(video) for video in videos]}


class TileGroups(Hooked, BaseVideoProcessor):
    """Put before vLLM's own for InternVL, whose name differs between versions."""

    @hook
    def __call__(self, videos: Any, *, return_tensors: Any = None, **kwargs: Any) -> BatchFeature:
        taking = TAKING.get()
        if taking is None:
            return super().__call__(videos, return_tensors=return_tensors, **kwargs)
        finish, to_pixels = taking.finish, getattr(self, TILES)

        def grouped(video: Any) -> GroupedVideo:
            def make(some: slice) -> torch.Tensor:
                squares: torch.Tensor = finish(to_pixels([video[some]])[0])
                return squares

            return frame_by_frame(len(video), make)

        found = [grouped(video) for video in (videos if isinstance(videos, list) else [videos])]
        taking.videos += found
        data = {
            "pixel_values_flat_video": torch.cat([without_width(video) for video in found]),
            "video_num_patches": torch.tensor([video.num_rows for video in found]),
        }
        return BatchFeature(data, tensor_type=return_tensors)
