"""Adapters of the micro model in PEFT's format, and the same merged into Hugging Face's model."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

RANK, ALPHA = 4, 8
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_TEXT = "model.language_model"
_EMBEDDING = f"base_model.model.{_TEXT}.embed_tokens.lora_embedding_{{}}"


def write_adapter(
    folder: Path, model: Any, seed: int, targets: tuple[str, ...] = TARGETS, words: Sequence[int] = ()
) -> str:
    """A random one for the language model of `model`, Hugging Face's; it changes the embeddings of `words`, ids."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, module in model.named_modules():
        if name.startswith(_TEXT) and name.rpartition(".")[2] in targets:
            out, wide = module.weight.shape
            weights[f"base_model.model.{name}.lora_A.weight"] = torch.randn(RANK, wide, generator=generator) * 0.1
            weights[f"base_model.model.{name}.lora_B.weight"] = torch.randn(out, RANK, generator=generator) * 0.1
    if words:
        vocabulary, wide = model.get_input_embeddings().weight.shape
        down = torch.zeros(RANK, vocabulary)
        down[:, list(words)] = torch.randn(RANK, len(words), generator=generator)
        weights[_EMBEDDING.format("A")] = down
        weights[_EMBEDDING.format("B")] = torch.randn(wide, RANK, generator=generator)
        targets = (*targets, "embed_tokens")
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": list(targets), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


@torch.no_grad()
def merged(model: Any, folder: str) -> Any:
    """A copy of `model`, whose embeddings are not those of its head, that holds the adapter."""
    model = copy.deepcopy(model)
    weights = load_file(Path(folder) / "adapter_model.safetensors")
    if _EMBEDDING.format("A") in weights:
        down, up = (weights[_EMBEDDING.format(side)] for side in "AB")
        model.get_input_embeddings().weight += ALPHA / RANK * (up @ down).T
    for name, down in weights.items():
        if name.endswith("lora_A.weight"):
            place = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            up = weights[name.replace("lora_A", "lora_B")]
            model.get_submodule(place).weight += ALPHA / RANK * up @ down
    return model
