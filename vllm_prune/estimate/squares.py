"""Vision encoders that see squares of one size, each by itself: CLIP's and SigLIP's before LLaVA, InternViT."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_prune.estimate.text_dims import EstimateError, size_of


@dataclass(frozen=True, kw_only=True)
class SquareDims:
    """One square, and what becomes of it."""

    patches: int
    """Along a side."""
    marks: int
    """Tokens beside the patches inside the encoder: CLIP's class token."""
    projected: int
    """Tokens of a square that go through the projector."""
    frame_side: int
    """Tokens of a video's frame along a side; 0: the model takes no videos."""
    image_side: int
    """Tokens of an image along a side; 0: its tiles follow from its own size."""
    projector_parameters: int
    """Matrix elements that a token is multiplied with there."""

    @property
    def sequence(self) -> int:
        """Tokens of a square inside the encoder."""
        return self.patches**2 + self.marks

    def side_of(self, of_images: bool) -> int:
        """Tokens along a side of an image or a frame.

        Raises:
            EstimateError: The model takes none, or their number does not follow from the model alone.
        """
        if of_images and not self.image_side:
            raise EstimateError(
                "images: this model cuts an image into tiles by its own table of sizes, which is not estimated; give "
                "frames of a video"
            )
        if not of_images and not self.frame_side:
            raise EstimateError("frames: this model takes images only; give images")
        return self.image_side if of_images else self.frame_side


_WITHOUT_TILES = "LlavaForConditionalGeneration"
_POOLED = {"LlavaOnevisionForConditionalGeneration": math.ceil, "LlavaNextVideoForConditionalGeneration": math.floor}
"""How half a token at the edge of a frame of pooled tokens is rounded."""
_POOLS_FIRST = "LlavaNextVideoForConditionalGeneration"
"""Before the projector, where others do so behind it."""
_SHUFFLED = ("InternVLChatModel", "InternVLForConditionalGeneration")


def parse_squares(architecture: str, config: Mapping[str, Any], text_hidden: int) -> SquareDims | None:
    """The squares of a model by its config.json; None where it has patches of any number.

    Raises:
        EstimateError: A field is missing.
    """
    if architecture not in (_WITHOUT_TILES, *_POOLED, *_SHUFFLED, "LlavaNextForConditionalGeneration"):
        return None
    vision = config.get("vision_config") or {}
    side = _first(vision, "image_size", 336) // _first(vision, "patch_size", 14)
    hidden = size_of(vision, "hidden_size")
    if architecture in _SHUFFLED:
        ratio = float(config.get("downsample_ratio", 0.5))
        tokens = int(side * ratio)
        wide = round(hidden / ratio**2)
        return SquareDims(
            patches=side,
            marks=1,
            projected=tokens**2,
            frame_side=tokens,
            image_side=0,
            projector_parameters=text_hidden * (wide + text_hidden),
        )
    pooled = _POOLED.get(architecture)
    frame_side = 0 if pooled is None else pooled(side / 2)
    return SquareDims(
        patches=side,
        marks=int(config.get("vision_feature_select_strategy") == "default"),
        projected=(frame_side if architecture == _POOLS_FIRST else side) ** 2,
        frame_side=frame_side,
        image_side=side if architecture == _WITHOUT_TILES else 0,
        projector_parameters=text_hidden * (hidden + text_hidden),
    )


_LLAMA = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008}
_TEXT_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "intermediate_size": 14336, "num_key_value_heads": 8},
}
"""What the config.json of a LLaVA leaves to the classes of `transformers`."""


def text_fields(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of the language model: nested under one of two names or, as in older files, at the top."""
    text = config.get("text_config") or config.get("llm_config")
    if text is None:
        return config
    return {**_TEXT_DEFAULTS.get(text.get("model_type", ""), {}), **text}


def encoder_depth(config: Mapping[str, Any], vision: Mapping[str, Any]) -> int:
    """Layers of the vision encoder that run: none behind the one whose output is taken."""
    depth = size_of(vision, "num_hidden_layers")
    layer = config.get("vision_feature_layer", -1)
    return depth + 1 + layer if isinstance(layer, int) and layer < 0 else depth


def _first(fields: Mapping[str, Any], name: str, default: int) -> int:
    """A size that may be given for both sides."""
    value = fields.get(name, default)
    return size_of({name: value[0] if isinstance(value, list | tuple) and value else value}, name)
