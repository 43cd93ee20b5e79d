"""Model folders without weights: a Qwen2.5-VL of given dimensions, for `--load-format dummy`.

Timings of such a model are real, its answers are not. The tokenizer has one token a character, so that random token ids
survive the way through text and back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD)
CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))

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

PATCH_SIZE, SPATIAL_MERGE, TEMPORAL_PATCH = 14, 2, 2
PIXELS_PER_TOKEN = (PATCH_SIZE * SPATIAL_MERGE) ** 2  # of one frame; a token also spans two frames
PATCHES_PER_TOKEN = SPATIAL_MERGE**2


@dataclass(frozen=True, kw_only=True)
class ModelDims:
    """Sizes of one Qwen2.5-VL; `summary` says where they come from."""

    summary: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    tied: bool
    mrope_section: tuple[int, int, int]  # half of head_dim, over time, height, width
    vision_depth: int
    vision_hidden: int
    vision_heads: int
    vision_mlp: int
    vision_full_attention: tuple[int, ...]  # blocks that attend over the whole frame

    @property
    def llm_parameters(self) -> int:
        """Parameters of the decoder layers: what one token of a prompt is multiplied with."""
        head_dim = self.hidden // self.heads
        attention = 2 * self.hidden**2 + 2 * self.hidden * self.kv_heads * head_dim
        return self.layers * (attention + 3 * self.hidden * self.mlp)

    @property
    def vision_parameters(self) -> int:
        """Parameters of the vision blocks: what one patch is multiplied with."""
        return self.vision_depth * (4 * self.vision_hidden**2 + 3 * self.vision_hidden * self.vision_mlp)

    @property
    def vision_share(self) -> float:
        """Linear FLOPs of the vision blocks per linear FLOP of the decoder, for an unpruned video."""
        return PATCHES_PER_TOKEN * self.vision_parameters / self.llm_parameters

    def describe(self) -> str:
        """One line for reports."""
        return (
            f"{self.summary}; decoder: {self.layers} layers, hidden {self.hidden}, MLP {self.mlp}, {self.heads} heads, "
            f"{self.kv_heads} KV heads, vocabulary {self.vocabulary}, {self.llm_parameters / 1e6:.1f} M parameters "
            f"without embeddings; vision: {self.vision_depth} blocks, hidden {self.vision_hidden}, MLP "
            f"{self.vision_mlp}, {self.vision_heads} heads, {self.vision_parameters / 1e6:.1f} M parameters, that is "
            f"{self.vision_share:.0%} of the decoder's linear FLOPs for an unpruned video"
        )


DIMS = {
    "cpu": ModelDims(
        summary="decoder of Qwen2.5-0.5B (0.49 B parameters), vision tower with the share it has in Qwen2.5-VL-32B",
        hidden=896,
        layers=24,
        heads=14,
        kv_heads=2,
        mlp=4864,
        vocabulary=151936,
        tied=True,
        mrope_section=(8, 12, 12),
        vision_depth=6,
        vision_hidden=320,
        vision_heads=4,
        vision_mlp=856,
        vision_full_attention=(2, 5),
    ),
    "7b": ModelDims(
        summary="Qwen2.5-VL-7B",
        hidden=3584,
        layers=28,
        heads=28,
        kv_heads=4,
        mlp=18944,
        vocabulary=152064,
        tied=False,
        mrope_section=(16, 24, 24),
        vision_depth=32,
        vision_hidden=1280,
        vision_heads=16,
        vision_mlp=3420,
        vision_full_attention=(7, 15, 23, 31),
    ),
    "smoke": ModelDims(
        summary="smallest that vLLM runs, for trying the benchmark out",
        hidden=128,
        layers=2,
        heads=4,
        kv_heads=2,
        mlp=256,
        vocabulary=512,
        tied=True,
        mrope_section=(4, 6, 6),
        vision_depth=2,
        vision_hidden=128,
        vision_heads=4,
        vision_mlp=256,
        vision_full_attention=(1,),
    ),
}


def write_random_model(folder: Path, dims: ModelDims) -> Path:
    """Write configuration, tokenizer and processor files of `dims` into `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", _model_config(dims))
    _write_json(folder / "generation_config.json", {"eos_token_id": _token_id(IM_END), "do_sample": False})
    _write_json(folder / "tokenizer.json", _tokenizer())
    _write_json(folder / "tokenizer_config.json", _tokenizer_config())
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    _write_json(folder / "preprocessor_config.json", _image_processor("image_processor_type", "Qwen2VLImageProcessor"))
    _write_json(
        folder / "video_preprocessor_config.json", _image_processor("video_processor_type", "Qwen2VLVideoProcessor")
    )
    return folder


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _token_id(token: str) -> int:
    return SPECIAL_TOKENS.index(token)


def _model_config(dims: ModelDims) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "dtype": "bfloat16",
        "image_token_id": _token_id(IMAGE_PAD),
        "video_token_id": _token_id(VIDEO_PAD),
        "vision_start_token_id": _token_id(VISION_START),
        "vision_end_token_id": _token_id(VISION_END),
        "tie_word_embeddings": dims.tied,
        "text_config": _text_config(dims),
        "vision_config": _vision_config(dims),
    }


def _text_config(dims: ModelDims) -> dict[str, Any]:
    return {
        "model_type": "qwen2_5_vl_text",
        "vocab_size": dims.vocabulary,
        "hidden_size": dims.hidden,
        "intermediate_size": dims.mlp,
        "num_hidden_layers": dims.layers,
        "num_attention_heads": dims.heads,
        "num_key_value_heads": dims.kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1000000.0,
            "mrope_section": list(dims.mrope_section),
        },
        "use_sliding_window": False,
        "tie_word_embeddings": dims.tied,
        "bos_token_id": _token_id(END_OF_TEXT),
        "eos_token_id": _token_id(IM_END),
        "pad_token_id": _token_id(END_OF_TEXT),
    }


def _vision_config(dims: ModelDims) -> dict[str, Any]:
    return {
        "model_type": "qwen2_5_vl_vision",
        "depth": dims.vision_depth,
        "hidden_size": dims.vision_hidden,
        "intermediate_size": dims.vision_mlp,
        "num_heads": dims.vision_heads,
        "out_hidden_size": dims.hidden,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": SPATIAL_MERGE,
        "temporal_patch_size": TEMPORAL_PATCH,
        "window_size": 112,
        "fullatt_block_indexes": list(dims.vision_full_attention),
        "tokens_per_second": 2,
        "hidden_act": "silu",
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


def _image_processor(key: str, name: str) -> dict[str, Any]:
    """Settings that leave frames between 16 and 1,024 tokens at their size (rounded to whole tokens)."""
    return {
        key: name,
        "processor_class": "Qwen2_5_VLProcessor",
        "size": {"shortest_edge": 16 * PIXELS_PER_TOKEN, "longest_edge": 1024 * PIXELS_PER_TOKEN},
        "patch_size": PATCH_SIZE,
        "merge_size": SPATIAL_MERGE,
        "temporal_patch_size": TEMPORAL_PATCH,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "do_sample_frames": False,
    }
