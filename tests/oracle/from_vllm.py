"""A request as `vllm.LLM.generate` takes it, turned into the oracle's prompt by the same Hugging Face processor."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.video_utils import VideoMetadata

from .prompt import Medium, Prompt
from .squares import sees_squares, square_images, square_videos

REPLY_HEADER = "<|im_end|>\n<|im_start|>assistant\n"
Video = tuple[np.ndarray, dict[str, Any]]
"""Frames [T, H, W, 3] uint8, and vLLM's metadata: fps, duration, total_num_frames, frames_indices, ..."""


def to_prompt(
    processor: ProcessorMixin,
    text: str,
    videos: Sequence[Video] = (),
    images: Sequence[Image] = (),
    dtype: torch.dtype = torch.float32,
    typed: bool = False,
) -> Prompt:
    """The prompt of a request.

    Args:
        text: With one placeholder for each medium.
        videos: In the order of their placeholders.
        images: In the order of their placeholders.
        dtype: The served model's, which vLLM casts `second_per_grid_ts` to.
        typed: There may be more placeholders than media; vLLM puts media in the place of the first ones of their kind.
    """
    ids = processor.tokenizer(text).input_ids
    for name, token_id, given in (
        ("videos", _video_token_id(processor), videos),
        ("images", processor.image_token_id, images),
    ):
        count = ids.count(token_id)
        if count < len(given) or (count > len(given) and not typed):
            raise ValueError(f"{len(given)} {name} for {count} placeholders")
    remaining = {
        _video_token_id(processor): iter(_videos(processor, videos, dtype)),
        processor.image_token_id: iter(_images(processor, images)),
    }
    found = [(index, next(remaining[token_id], None)) for index, token_id in enumerate(ids) if token_id in remaining]
    media = [(index, medium) for index, medium in found if medium is not None]
    header = processor.tokenizer(REPLY_HEADER).input_ids
    special = frozenset(processor.tokenizer.all_special_ids)
    return Prompt(ids, [medium for _, medium in media], [index for index, _ in media], tuple(header), special)


def _video_token_id(processor: ProcessorMixin) -> int | None:
    """None of a model without videos; not every processor says it."""
    token = getattr(processor, "video_token", None)
    return None if token is None else processor.tokenizer.convert_tokens_to_ids(token)


def _videos(processor: ProcessorMixin, videos: Sequence[Video], dtype: torch.dtype) -> list[Medium]:
    if not videos:
        return []
    if sees_squares(processor):
        return square_videos(processor, videos)
    metadata = [
        # Copied, since Qwen3-VL's processor appends to the list of an odd number of frames.
        VideoMetadata(**copy.deepcopy({key: value for key, value in fields.items() if key != "do_sample_frames"}))
        for _, fields in videos
    ]
    output = processor(videos=[frames for frames, _ in videos], video_metadata=metadata, return_tensors="pt")
    pixels = _split(output, "pixel_values_videos", "video_grid_thw")
    found = output.get("second_per_grid_ts")
    seconds = [1.0] * len(videos) if found is None else torch.as_tensor(found).to(dtype).tolist()
    texts = [_text(processor, fields, grid[0]) for fields, (_, grid) in zip(metadata, pixels, strict=True)]
    return [
        Medium("video", values, grid, second, text)
        for (values, grid), second, text in zip(pixels, seconds, texts, strict=True)
    ]


def _text(processor: ProcessorMixin, metadata: VideoMetadata, steps: int) -> tuple[tuple[int, ...], ...]:
    """What Hugging Face's processor writes around the steps of a video: a timestamp and the marks of vision."""
    if not hasattr(processor, "_calculate_timestamps"):
        return ()
    video = {"video_grid_thw": torch.tensor([[steps, 2, 2]]), "video_metadata": [metadata]}
    written = processor.replace_video_token(video, 0)
    runs = written.split(processor.video_token * (4 // processor.video_processor.merge_size**2))
    return tuple(tuple(processor.tokenizer(run, add_special_tokens=False).input_ids) for run in runs)


def _images(processor: ProcessorMixin, images: Sequence[Image]) -> list[Medium]:
    if not images:
        return []
    if sees_squares(processor):
        return square_images(processor, images)
    output = processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
    return [Medium("image", values, grid) for values, grid in _split(output, "pixel_values", "image_grid_thw")]


def _split(output: BatchFeature, values: str, grids: str) -> list[tuple[torch.Tensor, tuple[int, int, int]]]:
    """(pixel values [patches, dimension], grid) of each medium."""
    parts = output[values].split(output[grids].prod(1).tolist())
    return [(part, tuple(grid)) for part, grid in zip(parts, output[grids].tolist(), strict=True)]
