"""A random, tiny Qwen2.5-VL in float32, the same at every run, with the embedded model's tokenizer and processor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

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
VISION = {"depth": 2, "fullatt_block_indexes": [1], "tokens_per_second": 4}


def write_micro_model(folder: Path, seed: int = 0) -> Path:
    """Writes the checkpoint into `folder`, which is made if need be, and returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        shutil.copy(EMBEDDED_MODEL / name, folder)
    model = Qwen2_5_VLForConditionalGeneration(micro_config()).float()
    randomize(model, seed)
    text = model.config.text_config
    model.generation_config.eos_token_id = text.eos_token_id
    model.generation_config.pad_token_id = text.pad_token_id
    model.save_pretrained(folder)
    return folder


def micro_config() -> Qwen2_5_VLConfig:
    """The embedded model's, for its vocabulary, in the sizes of `TEXT` and `VISION`."""
    fields = json.loads((EMBEDDED_MODEL / "config.json").read_text())
    fields["dtype"] = "float32"
    fields["text_config"] |= TEXT
    fields["vision_config"] |= VISION
    return Qwen2_5_VLConfig(**fields)


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> None:
    """Gaussian weights; those of queries and keys large enough for attention that is far from flat."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name or "ln_q" in name:
            parameter.copy_(1 + 0.1 * noise)
        else:
            parameter.copy_(_scale(name) * noise)


def _scale(name: str) -> float:
    if "embed_tokens" in name:
        return 0.5
    return 0.1 if "q_proj" in name or "k_proj" in name or "lm_head" in name else 0.05
