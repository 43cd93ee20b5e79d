"""A random, tiny model in float32, the same at every run, with the embedded model's tokenizer and processor.

It is a Qwen2.5-VL, or of the family that `PRUNE_TEST_FAMILY` names: `PRUNE_TEST_FAMILY=qwen2_vl pytest tests/dense`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3_5Config,
    Qwen3_5MoeConfig,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
)

from vllm_prune.selector import INPUT, Header, ModelIdentity, Selector, SelectorConfig, load_selector, write_selector
from vllm_prune.selector.storage import probe_ids

from .square_models import SQUARES

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
INSIDE_KINDS: dict[int, Literal["match", "joint"]] = {1: "joint", 2: "match", 4: "joint"}
"""Of selectors, by the layer whose output they read; a Qwen3-VL allows no earlier one than these."""
QWEN2_VISION = {"depth": 2, "embed_dim": 128, "num_heads": 4, "mlp_ratio": 2, "patch_size": 14, "spatial_merge_size": 2}
QWEN3_TEXT = {
    "head_dim": 64,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [12, 10, 10],
        "mrope_interleaved": True,
    },
}
QWEN3_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "decoder_sparse_step": 1,
    "norm_topk_prob": True,
}
QWEN3_5_TEXT = {
    "layer_types": ["linear_attention", "linear_attention", "full_attention"] * 2,
    "head_dim": 256,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "mamba_ssm_dtype": "float32",
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [11, 11, 10],
        "mrope_interleaved": True,
        "partial_rotary_factor": 0.25,
    },
}
QWEN3_5_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 128,
}
QWEN3_VISION = {
    "depth": 3,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_heads": 4,
    "patch_size": 14,
    "out_hidden_size": TEXT["hidden_size"],
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1],
}
QWEN3_VIDEOS = {
    "video_processor_type": "Qwen3VLVideoProcessor",
    "size": {"shortest_edge": 3136, "longest_edge": 1 << 23},
}
VISION = {"depth": 2, "fullatt_block_indexes": [1], "tokens_per_second": 4}


def write_micro_model(folder: Path, seed: int = 0, family: str = FAMILY) -> Path:
    """Writes the checkpoint into `folder`, which is made if need be, and returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        shutil.copy(EMBEDDED_MODEL / name, folder)
    config = _write_square_processor(folder, family) if family in SQUARES else _write_patch_processor(folder, family)
    model = AutoModelForImageTextToText.from_config(config).float()
    randomize(model, seed)
    if family == "qwen3_5_moe":
        center_norms(model.model.language_model)
    text = model.config.text_config
    model.generation_config.eos_token_id = text.eos_token_id
    model.generation_config.pad_token_id = text.pad_token_id
    model.save_pretrained(folder)
    if hasattr(text, "num_experts"):
        transpose_experts(folder / "model.safetensors")
    if family.startswith("llava"):
        nest_encoder(folder / "model.safetensors")
    return folder


def _write_patch_processor(folder: Path, family: str) -> PreTrainedConfig:
    make_config, processing = FAMILIES[family]
    for name in (name for name in COPIED if "preprocessor" in name):
        fields = json.loads((folder / name).read_text()) | processing
        if name.startswith("video") and "3" in processing["processor_class"]:
            fields |= QWEN3_VIDEOS
        (folder / name).write_text(json.dumps(fields))
    return make_config()


def _write_square_processor(folder: Path, family: str) -> PreTrainedConfig:
    for name in (name for name in COPIED if "preprocessor" in name):
        (folder / name).unlink()
    for name, own in SQUARES[family][1].items():
        path = folder / name
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | own))
    return square_config(family)


def square_config(family: str) -> PreTrainedConfig:
    """Of a family of `SQUARES`, for the embedded model's vocabulary, in the sizes of `TEXT`."""
    fields = _fields()
    for name in ("rope_scaling", "rope_parameters", "layer_types", "model_type"):
        fields["text_config"].pop(name, None)
    tokens = {"image": fields["image_token_id"], "video": fields["video_token_id"]}
    config = SQUARES[family][0](fields["text_config"] | {"architectures": None}, tokens)
    config.dtype = "float32"
    return config


def transpose_experts(file: Path) -> None:
    """Published checkpoints have the experts' projections the other way round."""
    weights = load_file(file)
    save_file(
        {name: (w.mT if w.ndim == 3 and ".experts." in name else w).contiguous() for name, w in weights.items()}, file
    )


def nest_encoder(file: Path) -> None:
    """Published checkpoints have the vision encoder one level further down than today's `transformers`."""
    weights, old, new = load_file(file), "vision_tower.", "vision_tower.vision_model."
    save_file({name if new in name else name.replace(old, new): weight for name, weight in weights.items()}, file)


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


def micro_qwen3_vl() -> Qwen3VLConfig:
    """Qwen3-VL with deepstack at two layers."""
    return Qwen3VLConfig(**_qwen3_fields("qwen3_vl", "Qwen3VLForConditionalGeneration"))


def micro_qwen3_vl_moe() -> Qwen3VLMoeConfig:
    """The same with experts."""
    fields = _qwen3_fields("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration")
    fields["text_config"] |= QWEN3_EXPERTS
    return Qwen3VLMoeConfig(**fields)


def micro_qwen3_5() -> Qwen3_5Config:
    """Qwen3.5: two of three layers are Gated DeltaNet."""
    return Qwen3_5Config(**_qwen3_5_fields("qwen3_5", "Qwen3_5ForConditionalGeneration"))


def micro_qwen3_5_moe() -> Qwen3_5MoeConfig:
    """The same with experts."""
    fields = _qwen3_5_fields("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration")
    fields["text_config"] |= QWEN3_5_EXPERTS
    return Qwen3_5MoeConfig(**fields)


def _qwen3_5_fields(model_type: str, architecture: str) -> dict[str, Any]:
    fields = _qwen3_fields(model_type, architecture)
    fields["text_config"] |= QWEN3_5_TEXT
    fields["vision_config"]["model_type"] = f"{model_type}_vision"
    del fields["vision_config"]["deepstack_visual_indexes"]
    return fields


def _qwen3_fields(model_type: str, architecture: str) -> dict[str, Any]:
    fields = _fields()
    for name in ("rope_scaling", "rope_theta", "layer_types"):
        fields["text_config"].pop(name, None)
    fields["text_config"] |= QWEN3_TEXT | {"model_type": f"{model_type}_text"}
    fields["vision_config"] = QWEN3_VISION | {"model_type": model_type}
    return fields | {"model_type": model_type, "architectures": [architecture]}


def _fields() -> dict[str, Any]:
    fields = json.loads((EMBEDDED_MODEL / "config.json").read_text())
    fields["dtype"] = "float32"
    fields["text_config"] |= TEXT
    return fields


FAMILIES: dict[str, tuple[Callable[[], PreTrainedConfig], dict[str, str]]] = {
    "qwen2_5_vl": (micro_config, {"processor_class": "Qwen2_5_VLProcessor"}),
    "qwen2_vl": (micro_qwen2_vl, {"processor_class": "Qwen2VLProcessor"}),
    "qwen3_vl": (micro_qwen3_vl, {"processor_class": "Qwen3VLProcessor"}),
    "qwen3_vl_moe": (micro_qwen3_vl_moe, {"processor_class": "Qwen3VLProcessor"}),
    "qwen3_5": (micro_qwen3_5, {"processor_class": "Qwen3VLProcessor"}),
    "qwen3_5_moe": (micro_qwen3_5_moe, {"processor_class": "Qwen3VLProcessor"}),
}
"""By the `model_type` of their configurations: these, and what names their processors."""


def write_micro_selector(
    model: Path,
    kind: Literal["match", "joint"] = "match",
    seed: int = 0,
    bias: float | None = None,
    place: str | int = INPUT,
    into: Path | None = None,
) -> Path:
    """A random selector for the model in `model`, in the folder `into`, or in one there in which no weights are."""
    config = json.loads((model / "config.json").read_text())
    text = config.get("text_config") or config["llm_config"]
    torch.manual_seed(seed)
    selector = Selector(SelectorConfig(kind=kind, width=text["hidden_size"]))
    if bias is not None:
        selector.bias.data.fill_(bias)
    identity = ModelIdentity(
        architecture=config["architectures"][0],
        hidden_size=text["hidden_size"],
        num_layers=text["num_hidden_layers"],
        vocab_size=text["vocab_size"],
        name=model.name,
    )
    tables = (load_file(file) for file in model.glob("*.safetensors"))
    (table,) = (values for file in tables for name, values in file.items() if name.endswith("embed_tokens.weight"))
    path = (into or model / "selector") / (f"{kind}.safetensors" if place == INPUT else f"{kind}-{place}.safetensors")
    path.parent.mkdir(exist_ok=True)
    header = Header(config=selector.config, model=identity, place=place)
    write_selector(path, selector, header, table[probe_ids(text["vocab_size"])])
    return path


def micro_selector(model: str) -> str:
    """File of the selector before layer 0 that servers of the micro model in `model` have."""
    path = Path(model) / "selector" / "match.safetensors"
    return str(path if path.exists() else write_micro_selector(Path(model)))


def micro_selectors(model: str) -> list[str]:
    """Files of that one and of those inside the decoder, see `INSIDE_KINDS`."""
    inside = [write_micro_selector(Path(model), kind, seed=place, place=place) for place, kind in INSIDE_KINDS.items()]
    return [micro_selector(model), *map(str, inside)]


def load_by_place(files: list[str]) -> dict[str | int, Selector]:
    """The selectors in `files`, by where they read."""
    loaded = [load_selector(file, width=TEXT["hidden_size"], place=None) for file in files]
    return {each.header.place: each.selector for each in loaded}


@torch.no_grad()
def center_norms(decoder: nn.Module) -> None:
    """Where norms multiply by 1 + weight, weights around 0: with those of `randomize` experts amplify rounding."""
    for name, parameter in decoder.named_parameters():
        if "norm" in name and "linear_attn" not in name:
            parameter.sub_(1)


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> None:
    """Gaussian weights; those of queries and keys large enough for attention that is far from flat."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if ("norm" in name or "ln_q" in name) and name.endswith("weight"):
            parameter.copy_(1 + 0.1 * noise)
        elif name.endswith("A_log"):
            parameter.copy_(noise - 3)  # states that remember for dozens of tokens
        else:
            parameter.copy_(_scale(name) * noise)


def _scale(name: str) -> float:
    if "embed_tokens" in name:
        return 0.5
    if "conv1d" in name:
        return 0.4
    return 0.1 if "q_proj" in name or "k_proj" in name or "lm_head" in name else 0.05
