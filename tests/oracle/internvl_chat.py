"""The random, tiny InternVL once more, as the published repositories have it: other names, classes and placeholders."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

CONFIG_CODE = """
from transformers import AutoConfig, PretrainedConfig


class VisionConfig(PretrainedConfig):
    model_type = "intern_vit_6b"


class InternVLChatConfig(PretrainedConfig):
    model_type = "internvl_chat"

    def __init__(self, vision_config=None, llm_config=None, **kwargs):
        self.vision_config = VisionConfig(**(vision_config or {}))
        self.llm_config = AutoConfig.for_model(**(llm_config or {"model_type": "qwen3"}))
        super().__init__(**kwargs)
"""
PLACEHOLDERS = {"<|image_pad|>": "<IMG_CONTEXT>", "<|vision_start|>": "<img>", "<|vision_end|>": "</img>"}
NAMES = (
    (r"^vision_tower\.embeddings\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^vision_tower\.embeddings\.patch_embeddings\.projection\.", "vision_model.embeddings.patch_embedding."),
    (r"^vision_tower\.embeddings\.position_embeddings$", "vision_model.embeddings.position_embedding"),
    (r"^vision_tower\.encoder\.layer\.", "vision_model.encoder.layers."),
    (r"\.attention\.projection_layer\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.lambda_(\d)$", r".ls\1"),
    (r"^multi_modal_projector\.layer_norm\.", "mlp1.0."),
    (r"^multi_modal_projector\.linear_1\.", "mlp1.1."),
    (r"^multi_modal_projector\.linear_2\.", "mlp1.3."),
)


def write_chat_model(model: Path, folder: Path) -> Path:
    """Writes the checkpoint that Hugging Face's class has in `model` for the other class into `folder`."""
    folder.mkdir()
    config = json.loads((model / "config.json").read_text())
    vision = config["vision_config"]
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["InternVLChatModel"],
                "model_type": "internvl_chat",
                "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
                "dtype": "float32",
                "llm_config": config["text_config"] | {"architectures": ["Qwen3ForCausalLM"]},
                "vision_config": {
                    **{name: vision[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")},
                    "num_hidden_layers": vision["num_hidden_layers"],
                    "image_size": vision["image_size"][0],
                    "patch_size": vision["patch_size"][0],
                    "hidden_act": vision["hidden_act"],
                    "layer_norm_eps": vision["layer_norm_eps"],
                    "norm_type": vision["norm_type"],
                    "qkv_bias": False,
                    "qk_normalization": False,
                    "initializer_factor": 1.0,
                },
                "downsample_ratio": 0.5,
                "ps_version": "v2",
                "select_layer": -1,
                "force_image_size": vision["image_size"][0],
                "min_dynamic_patch": 1,
                "max_dynamic_patch": 4,
                "dynamic_image_size": True,
                "use_thumbnail": True,
            }
        )
    )
    (folder / "configuration_internvl_chat.py").write_text(CONFIG_CODE)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        text = (model / name).read_text()
        for old, new in PLACEHOLDERS.items():
            text = text.replace(old, new)
        (folder / name).write_text(text)
    save_file(_renamed(load_file(model / "model.safetensors")), folder / "model.safetensors")
    return folder


def _renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        for pattern, new in NAMES:
            name = re.sub(pattern, new, name)
        found[name] = weight
    for name in [name for name in found if ".attention.q_proj." in name]:
        parts = [found.pop(name.replace("q_proj", each)) for each in ("q_proj", "k_proj", "v_proj")]
        found[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts).contiguous()
    return found


def chat_text(text: str) -> str:
    """A prompt's text as vLLM takes it for this class."""
    for old, new in (("<|image_pad|>", "<image>"), ("<|video_pad|>", "<video>"), *PLACEHOLDERS.items()):
        text = text.replace(old, new)
    return text


class ChatProcessor:
    """Hugging Face's processor, with the pixels and the text between frames as vLLM has them for this class."""

    def __init__(self, processor: Any, side: int) -> None:
        from vllm.transformers_utils.processors.internvl import InternVLImageProcessor, InternVLVideoProcessor

        self._processor = processor
        self._images, self._videos = InternVLImageProcessor(side, 1, 4, True, True), InternVLVideoProcessor(side)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def image_processor(self, image: Any, **_: Any) -> dict[str, Any]:
        found = self._images(image)
        return {"num_patches": found["image_num_patches"], "pixel_values": found["pixel_values_flat"]}

    def video_processor(self, frames: Any, **_: Any) -> dict[str, Any]:
        return {"pixel_values_videos": [self._videos(frames)["pixel_values_flat_video"]]}

    def replace_video_token(self, media: dict[str, Any], index: int) -> str:
        return self._processor.replace_video_token(media, index).replace("\nFrame", "Frame")
