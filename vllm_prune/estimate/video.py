"""From frames and pixels to the grid of tokens, as the model's processor does it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

from vllm_prune.budget import count_most
from vllm_prune.config import PruneConfig
from vllm_prune.estimate.dims import VisionDims, config_path
from vllm_prune.estimate.text_dims import EstimateError
from vllm_prune.frames import most_steps

_IMAGES_FILE = "preprocessor_config.json"
_MAX_ASPECT = 200  # of Qwen's processor
_SIZES_ALL_FRAMES = ("Qwen3VLVideoProcessor",)
"""Video processors of transformers whose limits are those of all frames together."""


@dataclass(frozen=True)
class PixelLimits:
    """Pixels of a frame between which the processor leaves its size alone."""

    smallest: int
    largest: int
    of_all_frames: bool = False
    """Whether they are those of all frames together, as Qwen3-VL's processor has it."""


@dataclass(frozen=True)
class VideoShape:
    """A video as the vision encoder gets it: `frames` sampled frames of `height` x `width` pixels."""

    frames: int
    height: int
    width: int

    @classmethod
    def parse(cls, frames: int, size: str) -> VideoShape:
        """`size` is "WIDTHxHEIGHT" in pixels, or one number for a square.

        >>> VideoShape.parse(64, "640x360")
        VideoShape(frames=64, height=360, width=640)
        """
        parts = size.lower().split("x")
        if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise EstimateError(f"size={size!r}: must be WIDTHxHEIGHT in pixels, such as 448x448")
        if frames < 1:
            raise EstimateError(f"frames={frames!r}: must be 1 or more")
        return cls(frames, int(parts[-1]), int(parts[0]))

    def grid(
        self, vision: VisionDims, limits: PixelLimits | None = None, of_images: bool = False
    ) -> tuple[int, int, int]:
        """(t, h, w) in tokens. Without `limits`, frames keep their size, rounded to whole tokens.

        `of_images`: whether they are images; of weight only to models that see squares of one size.

        >>> from vllm_prune.estimate.dims import read_dims
        >>> VideoShape(63, 450, 448).grid(read_dims("embedded").vision)
        (32, 16, 16)
        """
        if vision.squares is not None:
            side = vision.squares.side_of(of_images)
            return self.frames, side, side
        steps = -(-self.frames // vision.temporal_patch)
        if limits is not None and limits.of_all_frames:
            counted = max(1, round(self.frames / vision.temporal_patch)) * vision.temporal_patch
            return steps, *self._fit_all(vision.token_pixels, counted, limits)
        return steps, *_fit(self.height, self.width, vision.token_pixels, limits)

    def _fit_all(self, side: int, counted: int, limits: PixelLimits) -> tuple[int, int]:
        """Rows and columns of tokens as `smart_resize` of Qwen3-VL's video processor makes them.

        Args:
            side: Pixels of a token's.
            counted: Frames in whole steps, as it counts them.
            limits: Of all of them together.
        """
        _check_aspect(self.height, self.width)
        up = max(1.0, side / self.height, side / self.width)
        height, width = int(self.height * up), int(self.width * up)
        rows, columns = round(height / side), round(width / side)
        pixels = counted * rows * columns * side**2
        if pixels > limits.largest:
            scale = math.sqrt(self.frames * height * width / limits.largest)
            return max(1, math.floor(height / scale / side)), max(1, math.floor(width / scale / side))
        if pixels < limits.smallest:
            scale = math.sqrt(limits.smallest / (self.frames * height * width))
            return math.ceil(height * scale / side), math.ceil(width * scale / side)
        return rows, columns


def _check_aspect(height: int, width: int) -> None:
    """Raises EstimateError where the processor would."""
    if max(height, width) > _MAX_ASPECT * min(height, width):
        raise EstimateError(
            f"size={width}x{height}: the model takes aspect ratios up to {_MAX_ASPECT}; crop the picture or the frames"
        )


def sampled_video(video: VideoShape, vision: VisionDims, config: PruneConfig, limits: PixelLimits | None) -> VideoShape:
    """Of a file of `video`, the frames that a server with `config` samples; all of them where that says nothing.

    Raises:
        EstimateError: Even one step of the grid keeps more tokens than `config.frames` allows.
    """
    allowed = config.frames
    if allowed is None:
        return video

    def cells(steps: int) -> int:
        _, h, w = replace(video, frames=steps * vision.temporal_patch).grid(vision, limits)
        return h * w

    def fits(steps: int, size: int) -> bool:
        return count_most(config.of_videos, steps * size, steps).kept <= allowed.tokens

    steps = most_steps(cells, fits, max(min(video.frames, allowed.most) // vision.temporal_patch, 1))
    if steps == 0:
        kept = count_most(config.of_videos, cells(1), 1).kept
        raise EstimateError(
            f"frames.tokens={allowed.tokens}: {vision.temporal_patch} frames keep {kept}; allow as many"
        )
    return replace(video, frames=min(steps * vision.temporal_patch, video.frames))


def _fit(height: int, width: int, side: int, limits: PixelLimits | None) -> tuple[int, int]:
    """Rows and columns of tokens of `side` pixels: Qwen's `smart_resize`."""
    _check_aspect(height, width)
    rows, columns = round(height / side), round(width / side)
    if limits is None:
        return max(1, rows), max(1, columns)
    pixels = rows * columns * side**2
    if pixels > limits.largest:
        scale = math.sqrt(height * width / limits.largest)
        return max(1, math.floor(height / scale / side)), max(1, math.floor(width / scale / side))
    if pixels < limits.smallest:
        scale = math.sqrt(limits.smallest / (height * width))
        return math.ceil(height * scale / side), math.ceil(width * scale / side)
    return rows, columns


def read_limits(model: str, of_images: bool = False) -> PixelLimits | None:
    """What the processor files beside a local model's config.json say; None without such files."""
    config = config_path(model)
    for name in (_IMAGES_FILE,) if of_images else ("video_preprocessor_config.json", _IMAGES_FILE):
        path = config.parent / name if config else None
        if path is not None and path.is_file():
            fields = json.loads(path.read_text(encoding="utf-8"))
            size = fields.get("size") or {}
            smallest = fields.get("min_pixels") or size.get("shortest_edge")
            largest = fields.get("max_pixels") or size.get("longest_edge")
            if smallest and largest:
                return PixelLimits(smallest, largest, fields.get("video_processor_type") in _SIZES_ALL_FRAMES)
    return None
