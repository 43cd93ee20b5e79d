"""Files of models without weights that see squares of one size: configuration and processors of LLaVA and InternVL."""

from __future__ import annotations

from typing import Any

from vllm_prune.bench.throughput.model_dims import PATCH_SIZE, SPATIAL_MERGE, ModelDims

SIDE = 196
"""Pixels along a square: 14 x 14 patches, pooled to 7 x 7 tokens of a frame, as many as Qwen has of 196 pixels."""
_COLOURS = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
}
_SQUARE = {"height": SIDE, "width": SIDE}
_PINPOINTS = [[SIDE, SIDE], [SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]


def square_config(dims: ModelDims, text: dict[str, Any], image_id: int, video_id: int) -> dict[str, Any]:
    """What a configuration has beside what all have; `text`: the decoder's part."""
    vision: dict[str, Any] = {
        "hidden_size": dims.vision_hidden,
        "intermediate_size": dims.vision_mlp,
        "num_hidden_layers": dims.vision_depth,
        "num_attention_heads": dims.vision_heads,
        "image_size": SIDE,
        "patch_size": PATCH_SIZE,
    }
    if dims.family == "internvl":
        return {
            "text_config": text | {"model_type": "qwen3"},
            "vision_config": vision | {"model_type": "internvl_vision"},
            "image_token_id": image_id,
            "image_seq_length": (SIDE // PATCH_SIZE // SPATIAL_MERGE) ** 2,
            "downsample_ratio": 1 / SPATIAL_MERGE,
        }
    return {
        "text_config": text | {"model_type": "qwen2"},
        "vision_config": vision | {"model_type": "siglip_vision_model", "vision_use_head": False},
        "image_token_index": image_id,
        "video_token_index": video_id,
        "image_grid_pinpoints": _PINPOINTS,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }


def square_processors(
    dims: ModelDims, around: tuple[str, str], image: str, video: str, turn: str
) -> dict[str, dict[str, Any]]:
    """Processor files by name. `around`: tokens around a square; `image`, `video`: placeholders; `turn`: begins one."""
    if dims.family == "internvl":
        names = dict(zip(("start_image_token", "end_image_token"), around, strict=True))
        names |= {"context_image_token": image, "video_token": video, "turn_start_token": turn}
        tiles = {"crop_to_patches": True, "min_patches": 1, "max_patches": 4}
        return {
            "preprocessor_config.json": _COLOURS
            | {"image_processor_type": "GotOcr2ImageProcessor", "size": _SQUARE, **tiles},
            "video_preprocessor_config.json": _COLOURS
            | {"video_processor_type": "InternVLVideoProcessor", "size": _SQUARE, "do_sample_frames": False},
            "processor_config.json": {
                "processor_class": "InternVLProcessor",
                "image_seq_length": (SIDE // PATCH_SIZE // SPATIAL_MERGE) ** 2,
            },
            "tokenizer_config.json": {"extra_special_tokens": names},
        }
    return {
        "preprocessor_config.json": _COLOURS
        | {
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "size": _SQUARE,
            "image_grid_pinpoints": _PINPOINTS,
            "do_pad": True,
        },
        "video_preprocessor_config.json": _COLOURS
        | {"video_processor_type": "LlavaOnevisionVideoProcessor", "size": _SQUARE, "do_sample_frames": False},
        "processor_config.json": {
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": (SIDE // PATCH_SIZE) ** 2,
            "vision_feature_select_strategy": "full",
            "image_token": image,
            "video_token": video,
        },
    }
