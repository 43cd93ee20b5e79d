"""Configurations of random, tiny models of families whose images and frames are squares of one size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import (
    InternVLConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextVideoConfig,
    LlavaOnevisionConfig,
    PreTrainedConfig,
)

PATCH, SIDE = 14, 84
"""Pixels along a patch, and along a square."""
PINPOINTS = [[SIDE, SIDE], [SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
"""(height, width) that an image may be stretched to, in tiles."""
VISION = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
}
SMALL = {"image_size": 24, "patch_size": 4}
"""As many patches; vLLM's LLaVA-NeXT-Video needs squares that are as large as the square of a patch."""
LARGE = {"image_size": 96, "patch_size": 4}
"""24 x 24 patches."""
COLOURS = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
}
SQUARE = {"height": SIDE, "width": SIDE}
TOKENS = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}


def _llava(text: Mapping[str, Any], tokens: Mapping[str, int]) -> LlavaConfig:
    vision = VISION | {"model_type": "clip_vision_model", "projection_dim": 64}
    return LlavaConfig(
        text_config=dict(text) | {"model_type": "llama"},
        vision_config=vision,
        image_token_index=tokens["image"],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(SIDE // PATCH) ** 2,
        architectures=["LlavaForConditionalGeneration"],
    )


def _llava_576(text: Mapping[str, Any], tokens: Mapping[str, int]) -> LlavaConfig:
    """With as many tokens an image as LLaVA-1.5, and layers enough to name the eleventh."""
    config = _llava(dict(text) | {"num_hidden_layers": 12}, tokens)
    config.vision_config.image_size, config.vision_config.patch_size = LARGE["image_size"], LARGE["patch_size"]
    config.image_seq_length = 576
    return config


def _llava_next(text: Mapping[str, Any], tokens: Mapping[str, int]) -> LlavaNextConfig:
    return LlavaNextConfig(
        text_config=dict(text) | {"model_type": "mistral", "head_dim": 32},
        vision_config=VISION | {"model_type": "clip_vision_model", "projection_dim": 64},
        image_token_index=tokens["image"],
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        architectures=["LlavaNextForConditionalGeneration"],
    )


def _llava_next_video(text: Mapping[str, Any], tokens: Mapping[str, int]) -> LlavaNextVideoConfig:
    return LlavaNextVideoConfig(
        text_config=dict(text) | {"model_type": "llama"},
        vision_config=VISION | SMALL | {"model_type": "clip_vision_model", "projection_dim": 64},
        image_token_index=tokens["image"],
        video_token_index=tokens["video"],
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        architectures=["LlavaNextVideoForConditionalGeneration"],
    )


def _llava_onevision(text: Mapping[str, Any], tokens: Mapping[str, int]) -> LlavaOnevisionConfig:
    return LlavaOnevisionConfig(
        text_config=dict(text) | {"model_type": "qwen2"},
        vision_config=VISION | {"model_type": "siglip_vision_model", "vision_use_head": False},
        image_token_index=tokens["image"],
        video_token_index=tokens["video"],
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        architectures=["LlavaOnevisionForConditionalGeneration"],
    )


def _internvl(text: Mapping[str, Any], tokens: Mapping[str, int]) -> InternVLConfig:
    return InternVLConfig(
        text_config=dict(text) | {"model_type": "qwen3"},
        vision_config=VISION | {"model_type": "internvl_vision", "use_mean_pooling": True},
        image_token_id=tokens["image"],
        video_token_id=tokens["video"],
        image_seq_length=(SIDE // PATCH // 2) ** 2,
        tie_word_embeddings=False,
        architectures=["InternVLForConditionalGeneration"],
    )


SQUARES: dict[str, tuple[Callable[[Mapping[str, Any], Mapping[str, int]], PreTrainedConfig], dict[str, Any]]] = {
    "llava": (
        _llava,
        {
            "preprocessor_config.json": COLOURS
            | {
                "image_processor_type": "CLIPImageProcessor",
                "size": {"shortest_edge": SIDE},
                "do_center_crop": True,
                "crop_size": SQUARE,
            },
            "processor_config.json": {
                "processor_class": "LlavaProcessor",
                "patch_size": PATCH,
                "num_additional_image_tokens": 1,
                "vision_feature_select_strategy": "default",
                "image_token": TOKENS["image_token"],
            },
        },
    ),
    "llava_576": (
        _llava_576,
        {
            "preprocessor_config.json": COLOURS
            | {
                "image_processor_type": "CLIPImageProcessor",
                "size": {"shortest_edge": LARGE["image_size"]},
                "do_center_crop": True,
                "crop_size": {"height": LARGE["image_size"], "width": LARGE["image_size"]},
            },
            "processor_config.json": {
                "processor_class": "LlavaProcessor",
                "patch_size": LARGE["patch_size"],
                "num_additional_image_tokens": 1,
                "vision_feature_select_strategy": "default",
                "image_token": TOKENS["image_token"],
            },
        },
    ),
    "llava_next": (
        _llava_next,
        {
            "preprocessor_config.json": COLOURS
            | {
                "image_processor_type": "LlavaNextImageProcessor",
                "size": {"shortest_edge": SIDE},
                "do_center_crop": True,
                "crop_size": SQUARE,
                "image_grid_pinpoints": PINPOINTS,
                "do_pad": True,
            },
            "processor_config.json": {
                "processor_class": "LlavaNextProcessor",
                "patch_size": PATCH,
                "num_additional_image_tokens": 1,
                "vision_feature_select_strategy": "default",
                "image_token": TOKENS["image_token"],
            },
        },
    ),
    "llava_next_video": (
        _llava_next_video,
        {
            "preprocessor_config.json": COLOURS
            | {
                "image_processor_type": "LlavaNextImageProcessor",
                "size": {"shortest_edge": SMALL["image_size"]},
                "crop_size": {"height": SMALL["image_size"], "width": SMALL["image_size"]},
                "image_grid_pinpoints": PINPOINTS,
            },
            "video_preprocessor_config.json": COLOURS
            | {
                "video_processor_type": "LlavaNextVideoVideoProcessor",
                "size": {"shortest_edge": SMALL["image_size"]},
                "do_center_crop": True,
                "crop_size": {"height": SMALL["image_size"], "width": SMALL["image_size"]},
                "do_sample_frames": False,
            },
            "processor_config.json": {
                "processor_class": "LlavaNextVideoProcessor",
                "patch_size": SMALL["patch_size"],
                "num_additional_image_tokens": 1,
                "vision_feature_select_strategy": "default",
                **TOKENS,
            },
        },
    ),
    "llava_onevision": (
        _llava_onevision,
        {
            "preprocessor_config.json": COLOURS
            | {
                "image_processor_type": "LlavaOnevisionImageProcessor",
                "size": SQUARE,
                "image_grid_pinpoints": PINPOINTS,
                "do_pad": True,
            },
            "video_preprocessor_config.json": COLOURS
            | {"video_processor_type": "LlavaOnevisionVideoProcessor", "size": SQUARE, "do_sample_frames": False},
            "processor_config.json": {
                "processor_class": "LlavaOnevisionProcessor",
                "num_image_tokens": (SIDE // PATCH) ** 2,
                "vision_feature_select_strategy": "full",
                **TOKENS,
            },
        },
    ),
    "internvl": (
        _internvl,
        {
            "preprocessor_config.json": COLOURS
            | {
                "image_processor_type": "GotOcr2ImageProcessor",
                "size": SQUARE,
                "crop_to_patches": True,
                "min_patches": 1,
                "max_patches": 4,
            },
            "video_preprocessor_config.json": COLOURS
            | {"video_processor_type": "InternVLVideoProcessor", "size": SQUARE, "do_sample_frames": False},
            "processor_config.json": {
                "processor_class": "InternVLProcessor",
                "image_seq_length": (SIDE // PATCH // 2) ** 2,
            },
            "tokenizer_config.json": {
                "extra_special_tokens": {
                    "start_image_token": "<|vision_start|>",
                    "end_image_token": "<|vision_end|>",
                    "context_image_token": "<|image_pad|>",
                    "video_token": "<|video_pad|>",
                    "turn_start_token": "<|im_start|>",
                }
            },
        },
    ),
}
"""By the `model_type` of their configurations, made of the decoder's fields and the ids of placeholders: these, and the
files of their processors."""
