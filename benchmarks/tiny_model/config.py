"""Configuration of the tiny model: the architecture of Qwen2.5-VL at 1/2000 of its size."""

from __future__ import annotations

from transformers import Qwen2_5_VLConfig

from .tokenizer import END_OF_TEXT, IM_END, IMAGE_PAD, VIDEO_PAD, VISION_END, VISION_START, build_tokenizer, token_id

FPS = 2  # of clip files; vLLM and transformers sample Qwen2.5-VL's videos at 2 frames a second, so none is skipped
TOKENS_PER_SECOND = 2  # temporal M-RoPE positions a second, as in Qwen2.5-VL-7B
TIME_STRIDE = 2 / FPS * TOKENS_PER_SECOND  # temporal positions between two temporal pairs of a clip file
VISION_CONFIG = {
    "depth": 4,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_heads": 4,
    "out_hidden_size": 192,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 56,
    "fullatt_block_indexes": [1, 3],
    "tokens_per_second": TOKENS_PER_SECOND,
    "hidden_act": "silu",
}


def tiny_config() -> Qwen2_5_VLConfig:
    """The configuration that is trained and exported.

    rope_theta is 1000: at head_dim 32 the usual 1e6 leaves the height and width angles nearly constant.
    """
    text_config = {
        "vocab_size": len(build_tokenizer()),
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": token_id(END_OF_TEXT),
        "eos_token_id": token_id(IM_END),
        "pad_token_id": token_id(END_OF_TEXT),
        "use_sliding_window": False,
    }
    return Qwen2_5_VLConfig(
        text_config=text_config,
        vision_config=VISION_CONFIG,
        image_token_id=token_id(IMAGE_PAD),
        video_token_id=token_id(VIDEO_PAD),
        vision_start_token_id=token_id(VISION_START),
        vision_end_token_id=token_id(VISION_END),
        tie_word_embeddings=False,
        architectures=["Qwen2_5_VLForConditionalGeneration"],
    )
