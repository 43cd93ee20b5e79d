"""A random, tiny model in float32, the same at every run, with the embedded model's tokenizer and processor.

It is a Qwen2.5-VL, or of the family that `PRUNE_TEST_FAMILY` names: `PRUNE_TEST_FAMILY=qwen2_vl pytest tests/dense`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedConfig, Qwen2_5_VLConfig, Qwen2VLConfig

FAMILY = os.environ.get("PRUNE_TEST_FAMILY", "qwen2_5_vl")
EMBEDDED_MODEL = Path(__file__).parents[2] / "vllm_prune" / "embedded" / "model"
COPIED = (
    "chat_template.jinja",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
)
TEXT = {
    "num_hidden_layers": 6,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
QWEN2_VISION = {"depth": 2, "embed_dim": 128, "num_heads": 4, "mlp_ratio": 2, "patch_size": 14, "spatial_merge_size": 2}
VISION = {"depth": 2, "fullatt_block_indexes": [1], "tokens_per_second": 4}


def write_micro_model(folder: Path, seed: int = 0, family: str = FAMILY) -> Path:
    """Writes the checkpoint into `folder`, which is made if need be, and returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    make_config, processor = FAMILIES[family]
    for name in COPIED:
        shutil.copy(EMBEDDED_MODEL / name, folder)
        if "preprocessor" in name:
            fields = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps(fields | {"processor_class": processor}))
    model = AutoModelForImageTextToText.from_config(make_config()).float()
    randomize(model, seed)
    text = model.config.text_config
    model.generation_config.eos_token_id = text.eos_token_id
    model.generation_config.pad_token_id = text.pad_token_id
    model.save_pretrained(folder)
    return folder


def micro_config() -> Qwen2_5_VLConfig:
    """The embedded model's, for its vocabulary, in the sizes of `TEXT` and `VISION`."""
    fields = _fields()
    fields["vision_config"] |= VISION
    return Qwen2_5_VLConfig(**fields)


def micro_qwen2_vl() -> Qwen2VLConfig:
    """The same language model behind Qwen2-VL's vision tower."""
    fields = _fields()
    fields["text_config"]["model_type"] = "qwen2_vl_text"
    fields["vision_config"] = QWEN2_VISION | {"hidden_size": TEXT["hidden_size"]}
    fields |= {"model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"]}
    return Qwen2VLConfig(**fields)


def _fields() -> dict[str, Any]:
    fields = json.loads((EMBEDDED_MODEL / "config.json").read_text())
    fields["dtype"] = "float32"
    fields["text_config"] |= TEXT
    return fields


FAMILIES: dict[str, tuple[Callable[[], PreTrainedConfig], str]] = {
    "qwen2_5_vl": (micro_config, "Qwen2_5_VLProcessor"),
    "qwen2_vl": (micro_qwen2_vl, "Qwen2VLProcessor"),
}
"""By the `model_type` of their configurations: these, and the names of their processors."""


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> None:
    """Gaussian weights; those of queries and keys large enough for attention that is far from flat."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if ("norm" in name or "ln_q" in name) and name.endswith("weight"):
            parameter.copy_(1 + 0.1 * noise)
        else:
            parameter.copy_(_scale(name) * noise)


def _scale(name: str) -> float:
    if "embed_tokens" in name:
        return 0.5
    return 0.1 if "q_proj" in name or "k_proj" in name or "lm_head" in name else 0.05
