"""Files of models without weights that see squares of one size: configuration and processors of LLaVA and InternVL."""

from __future__ import annotations

from typing import Any

from vllm_prune.bench.throughput.model_dims import FAMILIES, PATCH_SIZE, SPATIAL_MERGE, ModelDims

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


def square_config(dims: ModelDims, text: dict[str, Any], image_id: int, video_id: int) -> dict[str, Any]:
    """What a configuration has beside what all have; `text`: the decoder's part."""
    vision: dict[str, Any] = {
        "hidden_size": dims.vision_hidden,
        "intermediate_size": dims.vision_mlp,
        "num_hidden_layers": dims.vision_depth,
        "num_attention_heads": dims.vision_heads,
        "image_size": dims.square,
        "patch_size": PATCH_SIZE,
        "model_type": FAMILIES[dims.family].vision_type,
    }
    if dims.family == "internvl":
        return {
            "text_config": text | {"model_type": "qwen3"},
            "vision_config": vision,
            "image_token_id": image_id,
            "image_seq_length": _tokens_of_tile(dims),
            "downsample_ratio": 1 / SPATIAL_MERGE,
        }
    tokens = {"image_token_index": image_id, "video_token_index": video_id, "image_grid_pinpoints": _pinpoints(dims)}
    if dims.family == "llava_onevision":
        return {
            "text_config": text | {"model_type": "qwen2"},
            "vision_config": vision | {"vision_use_head": False},
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            **tokens,
        }
    last = {"num_hidden_layers": dims.vision_depth + 1}  # which runs in no LLaVA with CLIP
    return {
        "text_config": text | {"model_type": "llama"},
        "vision_config": vision | last,
        "image_seq_length": (dims.square // PATCH_SIZE) ** 2,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        **tokens,
    }


def _tokens_of_tile(dims: ModelDims) -> int:
    return (dims.square // PATCH_SIZE // SPATIAL_MERGE) ** 2


def _pinpoints(dims: ModelDims) -> list[list[int]]:
    """(height, width) of what images of several tiles are scaled to."""
    return [[rows * dims.square, columns * dims.square] for rows in (1, 2) for columns in (1, 2)]


def square_processors(
    dims: ModelDims, around: tuple[str, str], image: str, video: str, turn: str
) -> dict[str, dict[str, Any]]:
    """Processor files by name. `around`: tokens around a square; `image`, `video`: placeholders; `turn`: begins one."""
    square = {"height": dims.square, "width": dims.square}
    processor: dict[str, Any] = {"processor_class": FAMILIES[dims.family].processor}
    videos = _COLOURS | {"size": square, "do_sample_frames": False}
    if dims.family == "internvl":
        names = dict(zip(("start_image_token", "end_image_token"), around, strict=True))
        names |= {"context_image_token": image, "video_token": video, "turn_start_token": turn}
        tiles = {"crop_to_patches": True, "min_patches": 1, "max_patches": 4}
        return {
            "preprocessor_config.json": _COLOURS
            | {"image_processor_type": "GotOcr2ImageProcessor", "size": square, **tiles},
            "video_preprocessor_config.json": videos | {"video_processor_type": "InternVLVideoProcessor"},
            "processor_config.json": processor | {"image_seq_length": _tokens_of_tile(dims)},
            "tokenizer_config.json": {"extra_special_tokens": names},
        }
    processor |= {"image_token": image, "video_token": video}
    pinned: dict[str, Any] = {"image_grid_pinpoints": _pinpoints(dims), "do_pad": True}
    if dims.family == "llava_onevision":
        full = {"num_image_tokens": (dims.square // PATCH_SIZE) ** 2, "vision_feature_select_strategy": "full"}
        return {
            "preprocessor_config.json": _COLOURS
            | {"image_processor_type": "LlavaOnevisionImageProcessor", "size": square, **pinned},
            "video_preprocessor_config.json": videos | {"video_processor_type": "LlavaOnevisionVideoProcessor"},
            "processor_config.json": processor | full,
        }
    cropped = {"size": {"shortest_edge": dims.square}, "do_center_crop": True, "crop_size": square}
    images = {"image_processor_type": "CLIPImageProcessor"} if dims.family == "llava" else pinned
    files = {
        "preprocessor_config.json": _COLOURS | {"image_processor_type": "LlavaNextImageProcessor"} | images | cropped,
        "processor_config.json": processor
        | {"patch_size": PATCH_SIZE, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"},
    }
    if dims.family == "llava_next_video":
        kind = {"video_processor_type": "LlavaNextVideoVideoProcessor"}
        return files | {"video_preprocessor_config.json": videos | kind | cropped}
    del files["processor_config.json"]["video_token"]
    return files
