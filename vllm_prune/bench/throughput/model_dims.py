"""Sizes of models without weights, and what their files have of their own in each family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

PATCH_SIZE, SPATIAL_MERGE, TEMPORAL_PATCH = 14, 2, 2
LINEAR_WIDTH = 128
"""Of the heads of Gated DeltaNet, as in all published models."""
PIXELS_PER_TOKEN = (PATCH_SIZE * SPATIAL_MERGE) ** 2  # of one frame; a token also spans two frames
PATCHES_PER_TOKEN = SPATIAL_MERGE**2


@dataclass(frozen=True, kw_only=True)
class ModelDims:
    """Sizes of one model; `summary` says where they come from."""

    summary: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    tied: bool
    mrope_section: tuple[int, int, int]  # half of what of head_dim is rotated, over time, height, width
    vision_depth: int
    vision_hidden: int
    vision_heads: int
    vision_mlp: int
    vision_full_attention: tuple[int, ...] = ()  # blocks that attend over the whole frame, where there are windows
    head_width: int = 0  # of each head; 0: hidden / heads
    levels: tuple[int, ...] = ()  # vision blocks whose output goes to the decoder's first layers, too
    experts: int = 0  # MLPs of each layer, of width `mlp` each; 0: one MLP for all rows
    active_experts: int = 1  # how many of them each row goes through
    linear_heads: int = 0  # of the layers with Gated DeltaNet in place of attention, three of four; 0: no such layers
    rotary_share: float = 1.0  # of head_dim, what is rotated
    square: int = 196  # pixels along images and frames, where a family sees squares of one size
    family: str = "qwen2_5_vl"

    @property
    def head_dim(self) -> int:
        """Width of each head."""
        return self.head_width or self.hidden // self.heads

    @property
    def llm_parameters(self) -> int:
        """Parameters of the decoder layers: what one token of a prompt is multiplied with."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        if self.linear_heads:
            attention += self.hidden * self.head_dim * self.heads  # its gate
            width = LINEAR_WIDTH * 5 * self.linear_heads + 2 * self.linear_heads
            attention = (attention + 3 * self.hidden * width) // 4
        return self.layers * (attention + self.experts * self.hidden + 3 * self.hidden * self.mlp * self.active_experts)

    @property
    def vision_parameters(self) -> int:
        """Parameters of the vision blocks: what one patch is multiplied with."""
        matrices = FAMILIES[self.family].mlp_matrices
        return self.vision_depth * (4 * self.vision_hidden**2 + matrices * self.vision_hidden * self.vision_mlp)

    @property
    def vision_share(self) -> float:
        """Linear FLOPs of the vision blocks per linear FLOP of the decoder, for an unpruned video."""
        return PATCHES_PER_TOKEN * self.vision_parameters / self.llm_parameters

    def describe(self) -> str:
        """One line for reports."""
        mlp = f"{self.active_experts} of {self.experts} experts {self.mlp}" if self.experts else f"MLP {self.mlp}"
        linear = f", 3 of 4 with Gated DeltaNet of {self.linear_heads} heads" if self.linear_heads else ""
        return (
            f"{self.summary}; decoder: {self.layers} layers{linear}, hidden {self.hidden}, {mlp}, {self.heads} heads, "
            f"{self.kv_heads} KV heads, vocabulary {self.vocabulary}, {self.llm_parameters / 1e6:.1f} M parameters "
            f"without embeddings{' that a row goes through' if self.experts else ''}; vision: {self.vision_depth} "
            f"blocks, hidden {self.vision_hidden}, MLP {self.vision_mlp}, {self.vision_heads} heads, "
            f"{self.vision_parameters / 1e6:.1f} M parameters, that is {self.vision_share:.0%} of the decoder's linear "
            f"FLOPs for an unpruned video"
        )


def _windowed_tower(dims: ModelDims) -> dict[str, Any]:
    return {
        "hidden_size": dims.vision_hidden,
        "intermediate_size": dims.vision_mlp,
        "out_hidden_size": dims.hidden,
        "window_size": 112,
        "fullatt_block_indexes": list(dims.vision_full_attention),
        "tokens_per_second": 2,
        "hidden_act": "silu",
    }


def _whole_frame_tower(dims: ModelDims) -> dict[str, Any]:
    ratio = dims.vision_mlp // dims.vision_hidden
    return {"embed_dim": dims.vision_hidden, "mlp_ratio": ratio, "hidden_size": dims.hidden, "hidden_act": "quick_gelu"}


def _deepstack_tower(dims: ModelDims) -> dict[str, Any]:
    return {
        "hidden_size": dims.vision_hidden,
        "intermediate_size": dims.vision_mlp,
        "out_hidden_size": dims.hidden,
        "num_position_embeddings": 48**2,
        "deepstack_visual_indexes": list(dims.levels),
        "hidden_act": "gelu_pytorch_tanh",
    }


def _even_tower(dims: ModelDims) -> dict[str, Any]:
    return {name: value for name, value in _deepstack_tower(dims).items() if name != "deepstack_visual_indexes"}


@dataclass(frozen=True)
class Family:
    """What the files of a family's models have of their own."""

    architecture: str
    processor: str
    vision_config: Callable[[ModelDims], dict[str, Any]]
    mlp_matrices: int
    """In a vision block: three with a gate, else two."""
    vision_type: str
    """`model_type` of the vision tower."""
    video_processor: str = "Qwen2VLVideoProcessor"
    interleaved: bool = False
    """Whether the three axes of M-RoPE take turns."""
    sizes_whole_videos: bool = False
    """Whether the processor's limits in pixels are those of all frames together."""
    squares: bool = False
    """Whether frames are squares of one size (see `square_files.py`), before a decoder with plain RoPE."""


_QWEN3_VL = Family(
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLProcessor",
    _deepstack_tower,
    2,
    "qwen3_vl",
    video_processor="Qwen3VLVideoProcessor",
    interleaved=True,
    sizes_whole_videos=True,
)
_QWEN3_5 = replace(
    _QWEN3_VL,
    architecture="Qwen3_5ForConditionalGeneration",
    vision_config=_even_tower,
    vision_type="qwen3_5_vision",
)
_SQUARES = Family(
    "LlavaOnevisionForConditionalGeneration",
    "LlavaOnevisionProcessor",
    _even_tower,
    2,
    "siglip_vision_model",
    squares=True,
)


def _with_clip(name: str) -> Family:
    return replace(
        _SQUARES,
        architecture=f"{name}ForConditionalGeneration",
        processor=f"{name}Processor",
        vision_type="clip_vision_model",
    )


FAMILIES = {
    "qwen2_5_vl": Family(
        "Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLProcessor", _windowed_tower, 3, "qwen2_5_vl_vision"
    ),
    "qwen2_vl": Family("Qwen2VLForConditionalGeneration", "Qwen2VLProcessor", _whole_frame_tower, 2, "qwen2_vl_vision"),
    "qwen3_vl": _QWEN3_VL,
    "qwen3_vl_moe": replace(_QWEN3_VL, architecture="Qwen3VLMoeForConditionalGeneration", vision_type="qwen3_vl_moe"),
    "qwen3_5": _QWEN3_5,
    "llava_onevision": _SQUARES,
    "llava": _with_clip("Llava"),
    "llava_next": _with_clip("LlavaNext"),
    "llava_next_video": _with_clip("LlavaNextVideo"),
    "internvl": replace(
        _SQUARES,
        architecture="InternVLForConditionalGeneration",
        processor="InternVLProcessor",
        vision_type="internvl_vision",
    ),
}
"""By `model_type`."""
