"""The sizes of a model, read from its config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_prune.estimate.squares import SquareDims, encoder_depth, parse_squares, text_fields
from vllm_prune.estimate.text_dims import EstimateError, TextDims, parse_text, size_of
from vllm_prune.hub import read_config_fields
from vllm_prune.serving.wire.architectures import STEP_TEXT, VIDEO_PINS, families

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1, "float8_e4m3fn": 1, "float8_e5m2": 1}


@dataclass(frozen=True, kw_only=True)
class VisionDims:
    """The vision encoder. Lengths are in pixels where named so, else in patches."""

    hidden: int
    depth: int
    mlp: int
    out: int
    channels: int
    patch_pixels: int
    temporal_patch: int
    merge: int
    window_pixels: int
    full_attention: frozenset[int]
    """Blocks that attend over a whole step of the grid; the others attend within windows."""
    gated: bool = True
    """Whether the MLP of a block has a gate, and so three matrices in place of two."""
    levels: int = 0
    """Blocks whose output goes through a merger of its own, for later layers of the decoder."""
    squares: SquareDims | None = None
    """Where frames and images are squares of one size."""

    @property
    def token_pixels(self) -> int:
        """Side of the square of a frame that one token covers."""
        return self.patch_pixels * self.merge

    @property
    def block_parameters(self) -> int:
        """Matrix elements of one block."""
        return 4 * self.hidden**2 + (3 if self.gated else 2) * self.hidden * self.mlp

    @property
    def patch_embed_parameters(self) -> int:
        """Matrix elements that one patch's pixels are multiplied with."""
        return self.channels * self.temporal_patch * self.patch_pixels**2 * self.hidden

    @property
    def merger_parameters(self) -> int:
        """Matrix elements that one token is multiplied with at the end, and behind each of `levels`."""
        if self.squares is not None:
            return self.squares.projector_parameters
        wide = self.hidden * self.merge**2
        return (1 + self.levels) * wide * (wide + self.out)


@dataclass(frozen=True, kw_only=True)
class ModelDims:
    """Both, and the width of a stored number."""

    text: TextDims
    vision: VisionDims
    dtype_bytes: int
    step_text: int = 0
    """Tokens of text around each step of a video, which nothing prunes."""

    video_pins: int = 0
    """Rows that the encoder adds behind a video, likewise."""

    @property
    def step_text_most(self) -> int:
        """Room for it: timestamps of hours are longer than the average."""
        return 2 * self.step_text

    @property
    def parameters(self) -> int:
        """Matrix elements of the whole model (biases and norms, well below 1%, are left out)."""
        text, vision = self.text, self.vision
        embeddings = text.vocabulary * text.hidden * (1 if text.tied else 2)
        encoder = vision.depth * vision.block_parameters + vision.patch_embed_parameters + vision.merger_parameters
        return text.layers * text.stored_layer_parameters + embeddings + encoder


def read_dims(model: str) -> ModelDims:
    """The sizes of `model`: an embedded one, a folder, a config.json, or a name on the Hugging Face hub.

    Raises:
        EstimateError: There is no config.json, it is of another architecture, or a field is missing.
    """
    return parse_dims(read_config(model))


def read_config(model: str) -> dict[str, Any]:
    """The fields of the model's config.json."""
    path = config_path(model)
    if path is None:
        return _fetch_config(model)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EstimateError(f"model={model!r}: cannot read {path}: {error}; give a folder with config.json") from error


def config_path(model: str) -> Path | None:
    """Where the config.json of a local model is; None for a name on the hub."""
    from vllm_prune.embedded import resolve

    path = Path(resolve(model))
    if path.is_dir():
        return path / "config.json"
    return path if path.is_file() else None


def _fetch_config(model: str) -> dict[str, Any]:
    try:
        return read_config_fields(model)
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise EstimateError(
            f"model={model!r}: no such folder, and not found on the hub ({reason}); give a folder, or download it first"
        ) from error


def parse_dims(config: Mapping[str, Any]) -> ModelDims:
    """The sizes in a config.json's fields; the text part may be nested or, as in older files, at the top."""
    architectures = config.get("architectures") or [None]
    if architectures[0] not in families():
        raise EstimateError(
            f"architectures={architectures!r} (model_type={config.get('model_type')!r}): cannot be estimated; "
            f"supported: {', '.join(sorted(families()))}"
        )
    text = text_fields(config)
    squares = parse_squares(architectures[0], config, size_of(text, "hidden_size"))
    dtype = str(config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or "bfloat16")
    return ModelDims(
        text=parse_text(text, bool(config.get("tie_word_embeddings", False))),
        vision=_parse_vision(config.get("vision_config") or {}) if squares is None else _square_vision(config, squares),
        dtype_bytes=bytes_of(dtype.removeprefix("torch.")),
        step_text=STEP_TEXT.get(architectures[0], 0),
        video_pins=VIDEO_PINS.get(architectures[0], 0),
    )


def bytes_of(dtype: str) -> int:
    """Bytes of one number of the type called `dtype`."""
    if dtype not in _DTYPE_BYTES:
        raise EstimateError(f"dtype={dtype!r}: unknown; use one of {', '.join(_DTYPE_BYTES)}")
    return _DTYPE_BYTES[dtype]


def _parse_vision(fields: Mapping[str, Any]) -> VisionDims:
    """Where the width is called `embed_dim`, or places are embedded, every block attends over whole steps."""
    own_width, levels = "embed_dim" in fields, fields.get("deepstack_visual_indexes")
    placed = "num_position_embeddings" in fields
    depth, hidden = size_of(fields, "depth"), size_of(fields, "embed_dim" if own_width else "hidden_size")
    whole = range(depth) if own_width or placed else fields.get("fullatt_block_indexes", (7, 15, 23, 31))
    return VisionDims(
        hidden=hidden,
        depth=depth,
        mlp=int(hidden * fields.get("mlp_ratio", 4)) if own_width else size_of(fields, "intermediate_size"),
        out=size_of(fields, "hidden_size" if own_width else "out_hidden_size"),
        channels=size_of(fields, "in_channels", 3),
        patch_pixels=size_of(fields, "patch_size", 14),
        temporal_patch=size_of(fields, "temporal_patch_size", 2),
        merge=size_of(fields, "spatial_merge_size", 2),
        window_pixels=size_of(fields, "window_size", 112),
        full_attention=frozenset(whole),
        levels=len(levels or ()),
        gated=fields.get("hidden_act", "quick_gelu" if own_width else "silu") == "silu",
    )


def _square_vision(config: Mapping[str, Any], squares: SquareDims) -> VisionDims:
    """Every block attends over one square."""
    fields = config.get("vision_config") or {}
    patch = fields.get("patch_size", 14)
    depth = encoder_depth(config, fields)
    return VisionDims(
        hidden=size_of(fields, "hidden_size"),
        depth=depth,
        mlp=size_of(fields, "intermediate_size"),
        out=size_of(text_fields(config), "hidden_size"),
        channels=size_of(fields, "num_channels", 3),
        patch_pixels=patch if isinstance(patch, int) else patch[0],
        temporal_patch=1,
        merge=1,
        window_pixels=0,
        full_attention=frozenset(range(depth)),
        gated=False,
        squares=squares,
    )
