"""A medium too long for its width is refused with its size and the limit. Runs in the API server."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataItems, VideoProcessorItems

_LIMIT = re.compile(r"aspect ratio must be smaller than (\d+)")
"""What the Hugging Face processors of Qwen's families say, of no medium in particular."""


@contextlib.contextmanager
def told_with_its_size(items: MultiModalDataItems) -> Iterator[None]:
    """Names the medium where the Hugging Face processor refuses an aspect ratio.

    Args:
        items: A request's media, unprocessed.
    """
    try:
        yield
    except ValueError as error:
        limit = _limit_in(error)
        longest = max(_sizes(items), key=lambda named: _ratio(*named[1]), default=None)
        if limit is None or longest is None:
            raise
        name, (width, height) = longest
        raise ValueError(
            f"{name} has {width}x{height} pixels: the longer side must not be above {limit} times the shorter one; "
            f"crop it, or cut it into pieces"
        ) from error


def _limit_in(error: BaseException | None) -> int | None:
    """vLLM wraps the processor's error in one of its own."""
    while error is not None:
        if found := _LIMIT.search(str(error)):
            return int(found[1])
        error = error.__cause__
    return None


def _sizes(items: MultiModalDataItems) -> Iterator[tuple[str, tuple[int, int]]]:
    """Names with width and height in pixels; nothing for what is named by its uuid alone, or encoded."""
    images, videos = items.get("image"), items.get("video")
    if isinstance(images, ImageProcessorItems):
        for i, image in enumerate(images.get_all()):
            if image is not None:
                yield f"image {i}", _size(image)
    if isinstance(videos, VideoProcessorItems):
        for i, video in enumerate(videos.get_all()):
            frames = video[0] if isinstance(video, tuple) else video  # beside metadata
            if frames is not None and len(frames):
                yield f"video {i}", _size(frames[0])


def _size(picture: Any) -> tuple[int, int]:
    size = ImageProcessorItems([picture]).get_image_size(0)
    return size.width, size.height


def _ratio(width: int, height: int) -> float:
    return max(width, height) / max(1, min(width, height))
