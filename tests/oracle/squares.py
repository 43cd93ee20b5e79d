"""Media of models that see squares of one size, as Hugging Face's processors and models have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vllm_prune.methods import VideoTokens

from .prompt import Medium
from .square_models import SQUARES

TILED = 5
"""Dimensions of the pixels of tiled images, or of videos."""


def has_squares(model: PreTrainedModel) -> bool:
    """Whether a model is one of them."""
    return model.config.model_type in SQUARES


def sees_squares(processor: Any) -> bool:
    """The same by its processor."""
    names = {files["processor_config.json"]["processor_class"] for _, files in SQUARES.values()}
    return type(processor).__name__ in {*names, "ChatProcessor"}


def square_videos(processor: Any, videos: Sequence[Any]) -> list[Medium]:
    """Pixels [frames, 3, side, side] of every video, and the text around them."""
    pixels = [processor.video_processor(frames, return_tensors="pt")["pixel_values_videos"][0] for frames, _ in videos]
    texts = [_text(processor, "replace_video_token", {"pixel_values_videos": [frames]}) for frames in pixels]
    return [Medium("video", frames, (len(frames), 0, 0), text=text) for frames, text in zip(pixels, texts, strict=True)]


def square_images(processor: Any, images: Sequence[Any]) -> list[Medium]:
    """Pixels [3, side, side] of every image, or of its tiles, [tiles, 3, side, side]."""
    return [_image(processor, processor.image_processor(image.convert("RGB"), return_tensors="pt")) for image in images]


def _image(processor: Any, found: Any) -> Medium:
    if "num_patches" in found:
        tiles = int(found["num_patches"][0])
        text = _text(processor, "replace_image_token", {"num_patches": [tiles]})
        ends = text[0], *[()] * (tiles - 1), text[-1]
        return Medium("image", found["pixel_values"], (tiles, 0, 0), text=ends)
    height, width = found["image_sizes"][0].tolist() if "image_sizes" in found else (0, 0)
    return Medium("image", found["pixel_values"][0], (1, height, width))


def _text(processor: Any, name: str, media: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    """What Hugging Face's InternVL writes around the squares of a medium."""
    if not hasattr(processor, "start_image_token"):
        return ()
    written = getattr(processor, name)(media, 0)
    runs = [run for run in written.split(processor.image_token) if run]
    return tuple(tuple(processor.tokenizer(run, add_special_tokens=False).input_ids) for run in runs)


def encode_square(model: PreTrainedModel, medium: Medium) -> VideoTokens:
    """The cells of an unpruned medium."""
    rows = _rows(model, medium)
    return VideoTokens.from_features(rows[~_pinned(model, rows)], _grid(model, medium, rows))


def slots_of(model: PreTrainedModel, medium: Medium, tokens: VideoTokens) -> tuple[Tensor, Tensor, Tensor, int]:
    """Where a medium's tokens lie in the unpruned medium [n], where its other rows do [S], these [S, C], its length."""
    _, h, w = tokens.grid_thw
    cell = tokens.grid @ torch.tensor([h * w, w, 1])
    if medium.text:
        pinned = torch.cat([torch.tensor([True] * len(run) + [False] * h * w) for run in medium.text])
        pinned = pinned[: len(pinned) - h * w]
        others = model.get_input_embeddings()(torch.tensor([token for run in medium.text for token in run]))
    else:
        rows = _rows(model, medium)
        pinned = _pinned(model, rows)
        others = rows[pinned]
    return (~pinned).nonzero()[:, 0][cell], pinned.nonzero()[:, 0], others, len(pinned)


def _grid(model: PreTrainedModel, medium: Medium, rows: Tensor) -> tuple[int, int, int]:
    cells, frames = int((~_pinned(model, rows)).sum()), medium.grid_thw[0]
    if medium.kind == "image" and hasattr(model.model, "image_newline"):
        return 1, 1, cells
    side = round((cells / frames) ** 0.5)
    return frames, side, side


def _rows(model: PreTrainedModel, medium: Medium) -> Tensor:
    """[N + S, C], as they stand in an unpruned prompt."""
    pixels, options = medium.pixel_values[None], _options(model)
    if model.config.model_type == "internvl":
        return model.model.get_image_features(pixels[0], **options).pooler_output.flatten(0, 1)
    if medium.kind == "video":
        return model.model.get_video_features(pixels, **options).pooler_output[0].flatten(0, -2)
    if pixels.ndim == TILED:
        options["image_sizes"] = torch.tensor([medium.grid_thw[1:]])
    return model.model.get_image_features(pixels, **options).pooler_output[0]


def _options(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    return {
        "vision_feature_layer": config.vision_feature_layer,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }


def _pinned(model: PreTrainedModel, rows: Tensor) -> Tensor:
    """Which rows are newlines, [N + S] bool."""
    if not hasattr(model.model, "image_newline"):
        return torch.zeros(len(rows), dtype=torch.bool)
    return (rows == model.model.image_newline).all(1)
