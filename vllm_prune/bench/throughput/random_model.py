"""Model folders without weights: a model of given family and dimensions, for `--load-format dummy`.

Timings of such a model are real, its answers are not. The tokenizer has one token a character, so that random token ids
survive the way through text and back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vllm_prune.bench.throughput.model_dims import (
    FAMILIES,
    LINEAR_WIDTH,
    PATCH_SIZE,
    PIXELS_PER_TOKEN,
    SPATIAL_MERGE,
    TEMPORAL_PATCH,
    ModelDims,
)
from vllm_prune.bench.throughput.square_files import square_config, square_processors

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD)
CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))

_MEDIA = {"": "image", "video_": "video"}
_MOST_FRAMES = 768
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image_url' in content %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video_url' in content %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_random_model(folder: Path, dims: ModelDims) -> Path:
    """Write configuration, tokenizer and processor files of `dims` into `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", _model_config(dims))
    _write_json(folder / "generation_config.json", {"eos_token_id": _token_id(IM_END), "do_sample": False})
    _write_json(folder / "tokenizer.json", _tokenizer())
    _write_json(folder / "tokenizer_config.json", _tokenizer_config())
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    if FAMILIES[dims.family].squares:
        files = square_processors(dims, (VISION_START, VISION_END), IMAGE_PAD, VIDEO_PAD, IM_START)
        files["tokenizer_config.json"] = _tokenizer_config() | files.get("tokenizer_config.json", {})
    else:
        files = {f"{name}preprocessor_config.json": _media_processor(dims, kind) for name, kind in _MEDIA.items()}
    for name, content in files.items():
        _write_json(folder / name, content)
    return folder


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _token_id(token: str) -> int:
    return SPECIAL_TOKENS.index(token)


def _model_config(dims: ModelDims) -> dict[str, Any]:
    shared = {
        "architectures": [FAMILIES[dims.family].architecture],
        "model_type": dims.family,
        "dtype": "bfloat16",
        "tie_word_embeddings": dims.tied,
    }
    if FAMILIES[dims.family].squares:
        text = _text_config(dims)
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1000000.0}
        return shared | square_config(dims, text, _token_id(IMAGE_PAD), _token_id(VIDEO_PAD))
    return {
        **shared,
        "image_token_id": _token_id(IMAGE_PAD),
        "video_token_id": _token_id(VIDEO_PAD),
        "vision_start_token_id": _token_id(VISION_START),
        "vision_end_token_id": _token_id(VISION_END),
        "text_config": _text_config(dims),
        "vision_config": _vision_config(dims),
    }


def _text_config(dims: ModelDims) -> dict[str, Any]:
    return {
        "model_type": f"{dims.family}_text",
        "vocab_size": dims.vocabulary,
        "hidden_size": dims.hidden,
        "intermediate_size": dims.mlp,
        "num_hidden_layers": dims.layers,
        "num_attention_heads": dims.heads,
        "num_key_value_heads": dims.kv_heads,
        "head_dim": dims.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1000000.0,
            "mrope_section": list(dims.mrope_section),
            **({"mrope_interleaved": True} if FAMILIES[dims.family].interleaved else {}),
            **({"partial_rotary_factor": dims.rotary_share} if dims.rotary_share < 1 else {}),
        },
        **_experts(dims),
        **_linear_attention(dims),
        "use_sliding_window": False,
        "tie_word_embeddings": dims.tied,
        "bos_token_id": _token_id(END_OF_TEXT),
        "eos_token_id": _token_id(IM_END),
        "pad_token_id": _token_id(END_OF_TEXT),
    }


def _experts(dims: ModelDims) -> dict[str, Any]:
    if not dims.experts:
        return {}
    return {
        "num_experts": dims.experts,
        "num_experts_per_tok": dims.active_experts,
        "moe_intermediate_size": dims.mlp,
        "decoder_sparse_step": 1,
        "norm_topk_prob": True,
    }


def _linear_attention(dims: ModelDims) -> dict[str, Any]:
    if not dims.linear_heads:
        return {}
    return {
        "full_attention_interval": 4,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": LINEAR_WIDTH,
        "linear_value_head_dim": LINEAR_WIDTH,
        "linear_num_key_heads": dims.linear_heads,
        "linear_num_value_heads": dims.linear_heads,
        "mamba_ssm_dtype": "float32",
        "mtp_num_hidden_layers": 1,
    }


def _vision_config(dims: ModelDims) -> dict[str, Any]:
    return {
        "model_type": FAMILIES[dims.family].vision_type,
        "depth": dims.vision_depth,
        "num_heads": dims.vision_heads,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": SPATIAL_MERGE,
        "temporal_patch_size": TEMPORAL_PATCH,
        **FAMILIES[dims.family].vision_config(dims),
    }


def _tokenizer() -> dict[str, Any]:
    """The `tokenizers` description of one token a character."""
    vocabulary = [*SPECIAL_TOKENS, *CHARACTERS]
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": _token_id(token), "content": token, **added} for token in SPECIAL_TOKENS],
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": False},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": {token: index for index, token in enumerate(vocabulary)},
            "unk_token": END_OF_TEXT,
        },
    }


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "extra_special_tokens": [IM_START, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD],
        "model_max_length": 32768,
        "clean_up_tokenization_spaces": False,
    }


def _media_processor(dims: ModelDims, kind: str) -> dict[str, Any]:
    """Settings that leave frames between 16 and 1,024 tokens at their size (rounded to whole tokens)."""
    family = FAMILIES[dims.family]
    most = _MOST_FRAMES if kind == "video" and family.sizes_whole_videos else 1
    return {
        f"{kind}_processor_type": family.video_processor if kind == "video" else "Qwen2VLImageProcessor",
        "processor_class": family.processor,
        "size": {"shortest_edge": 16 * PIXELS_PER_TOKEN, "longest_edge": 1024 * most * PIXELS_PER_TOKEN},
        "patch_size": PATCH_SIZE,
        "merge_size": SPATIAL_MERGE,
        "temporal_patch_size": TEMPORAL_PATCH,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "do_sample_frames": False,
    }
