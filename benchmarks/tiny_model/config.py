"""Configurations of the tiny models: the architectures of Qwen2.5-VL and Qwen3-VL at 1/2000 of their size."""

from __future__ import annotations

from typing import Any, Literal

from transformers import PreTrainedConfig, Qwen2_5_VLConfig, Qwen3VLConfig

from .tokenizer import END_OF_TEXT, IM_END, IMAGE_PAD, VIDEO_PAD, VISION_END, VISION_START, build_tokenizer, token_id

Architecture = Literal["qwen2_5_vl", "qwen3_vl"]
ARCHITECTURES: tuple[Architecture, ...] = ("qwen2_5_vl", "qwen3_vl")
FPS = 2  # of clip files; vLLM and transformers sample both families' videos at 2 frames a second, so none is skipped
TOKENS_PER_SECOND = 2  # temporal M-RoPE positions a second, as in Qwen2.5-VL-7B
TIME_STRIDE = 2 / FPS * TOKENS_PER_SECOND  # temporal positions between two temporal pairs of a clip file
COMMON_VISION = {
    "depth": 4,
    "hidden_size": 128,
    "num_heads": 4,
    "out_hidden_size": 192,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
QWEN2_5_VISION = {
    "intermediate_size": 352,
    "window_size": 56,
    "fullatt_block_indexes": [1, 3],
    "tokens_per_second": TOKENS_PER_SECOND,
    "hidden_act": "silu",
}
QWEN3_VISION = {
    "intermediate_size": 384,
    "num_position_embeddings": 64,  # one for each patch of 112 x 112 pixels
    "deepstack_visual_indexes": [1, 2],  # added after layers 0 and 1 of the language model
}
# rope_theta is 1000: at head_dim 32 the usual 1e6 leaves most angles nearly constant.
QWEN2_5_ROPE = {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [4, 6, 6]}
QWEN3_ROPE = {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True}


def tiny_config(architecture: Architecture = "qwen2_5_vl") -> PreTrainedConfig:
    """The configuration that is trained and exported."""
    if architecture == "qwen2_5_vl":
        text = _text_config(len(build_tokenizer())) | {"rope_parameters": QWEN2_5_ROPE, "use_sliding_window": False}
        name = "Qwen2_5_VLForConditionalGeneration"
        return Qwen2_5_VLConfig(**_outer(text, COMMON_VISION | QWEN2_5_VISION, name))
    text = _text_config(len(build_tokenizer(timestamps=True))) | {"rope_parameters": QWEN3_ROPE, "head_dim": 32}
    return Qwen3VLConfig(**_outer(text, COMMON_VISION | QWEN3_VISION, "Qwen3VLForConditionalGeneration"))


def _text_config(vocab_size: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "bos_token_id": token_id(END_OF_TEXT),
        "eos_token_id": token_id(IM_END),
        "pad_token_id": token_id(END_OF_TEXT),
    }


def _outer(text_config: dict[str, Any], vision_config: dict[str, Any], name: str) -> dict[str, Any]:
    return {
        "text_config": text_config,
        "vision_config": vision_config,
        "image_token_id": token_id(IMAGE_PAD),
        "video_token_id": token_id(VIDEO_PAD),
        "vision_start_token_id": token_id(VISION_START),
        "vision_end_token_id": token_id(VISION_END),
        "tie_word_embeddings": False,
        "architectures": [name],
    }
