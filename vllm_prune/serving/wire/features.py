"""What a request for features asks for; on its way to the worker in vLLM's `PoolingParams.extra_kwargs`.

Layers are numbered as Hugging Face numbers `hidden_states`: 0 is what enters the first decoder layer, i what enters
layer i, and the number of layers what leaves the last one, normalized. Negative numbers count from the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_prune.config import PruneConfigError, brief

KEY = "features"
"""Of a request, and among `extra_kwargs`."""
DEFAULT_LAYERS = (0, -1)
"""That a server hands out."""
NO_TEXT, QUESTION_TEXT, ALL_TEXT = TEXTS = ("none", "question", "all")
_FIELDS = ("layer", "text", "pad")


def resolve_layer(field: str, layer: object, num_layers: int) -> int:
    """0 <= layer <= num_layers.

    Raises:
        PruneConfigError: It is none of the model's.
    """
    if isinstance(layer, bool) or not isinstance(layer, int) or not -num_layers - 1 <= layer <= num_layers:
        raise PruneConfigError(
            f"{field}={brief(layer)}: the model has {num_layers} decoder layers; use 0 (what enters the first) to "
            f"{num_layers} (what leaves the last), or -1 for the last"
        )
    return layer % (num_layers + 1)


def served_layers(layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """The layers that a server hands out, increasing.

    >>> served_layers((0, -1), 28)
    (0, 28)
    """
    return tuple(sorted({resolve_layer("feature_layers", layer, num_layers) for layer in layers}))


def parse_layers(text: str | None) -> tuple[int, ...]:
    """The layers of an option; None: the default ones.

    >>> parse_layers("0,14,-1"), parse_layers(None)
    ((0, 14, -1), (0, -1))
    """
    if text is None:
        return DEFAULT_LAYERS
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise PruneConfigError(f"--prune-features {text!r}: must be layers, such as 0,-1") from None


@dataclass(frozen=True, kw_only=True)
class FeatureRequest:
    """What is handed out of one request."""

    layer: int
    """0 <= layer <= number of decoder layers."""
    text: str | tuple[int, ...] = NO_TEXT
    """Of which text rows: one of TEXTS, or indices into the prompt as it is after pruning."""
    pad: bool = False
    """Whether every medium has as many rows as its `target_token_num`, those behind its tokens zero."""

    @classmethod
    def parse(cls, value: object, layers: Sequence[int], num_layers: int) -> FeatureRequest:
        """What a request says.

        Args:
            value: An object with any of the fields; None: all defaults.
            layers: That the server hands out (`served_layers`).
            num_layers: Of the decoder.

        Raises:
            PruneConfigError: Unknown field or unusable value.
        """
        fields = {} if value is None else value
        if not isinstance(fields, Mapping):
            raise PruneConfigError(f"{KEY}={brief(value)}: must be an object with any of {', '.join(_FIELDS)}")
        for name in fields:
            if name not in _FIELDS:
                raise PruneConfigError(f"{KEY}: unknown field {brief(name)}; known: {', '.join(_FIELDS)}")
        layer = resolve_layer(f"{KEY}.layer", fields.get("layer", -1), num_layers)
        if layer not in layers:
            raise PruneConfigError(
                f"{KEY}.layer={layer}: this server hands out {', '.join(map(str, layers))}; start it with "
                f"--prune-features {','.join(map(str, sorted({*layers, layer})))}"
            )
        pad = fields.get("pad", False)
        if not isinstance(pad, bool):
            raise PruneConfigError(f"{KEY}.pad={brief(pad)}: must be true or false")
        return cls(layer=layer, text=_text(fields.get("text", NO_TEXT)), pad=pad)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `parse` reads it back."""
        text = self.text if isinstance(self.text, str) else list(self.text)
        return {"layer": self.layer, "text": text, "pad": self.pad}


def _text(value: object) -> str | tuple[int, ...]:
    if isinstance(value, str) and value in TEXTS:
        return value
    if isinstance(value, list | tuple) and all(isinstance(i, int) and not isinstance(i, bool) for i in value):
        return tuple(value)
    raise PruneConfigError(f"{KEY}.text={brief(value)}: must be {', '.join(TEXTS)}, or a list of indices of the prompt")
