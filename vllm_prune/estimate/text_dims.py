"""The sizes of a language model, read from the fields of its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class EstimateError(ValueError):
    """Something that cannot be estimated; the message names field, value and remedy."""


@dataclass(frozen=True, kw_only=True)
class LinearDims:
    """Layers of linear attention with a gated delta rule. What they keep of a prompt does not grow with it."""

    indices: tuple[int, ...]
    """Which of the decoder's layers they are."""
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int

    @property
    def layers(self) -> int:
        """How many."""
        return len(self.indices)

    @property
    def width(self) -> int:
        """Of all projections of a row together: queries, keys, values, gate, decay and step size, and the output's."""
        values = self.value_heads * self.value_dim
        return 2 * self.key_heads * self.key_dim + 3 * values + 2 * self.value_heads

    @property
    def row_flops(self) -> int:
        """Of one row with the states of one layer: read by its key, changed, read by its query."""
        return 6 * self.value_heads * self.key_dim * self.value_dim


@dataclass(frozen=True, kw_only=True)
class TextDims:
    """The language model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    tied: bool
    experts: int = 0
    """Of each layer, MLPs of width `mlp`; 0: one MLP for all rows."""
    active_experts: int = 0
    """How many of them each row goes through."""
    shared_mlp: int = 0
    """Width of the MLP beside the experts that all rows go through."""
    gated: bool = False
    """Whether attention has a gate as wide as its queries."""
    linear: LinearDims | None = None
    """Of the layers that keep a state in place of keys and values, where there are some."""

    @property
    def keyed_layers(self) -> int:
        """Layers that keep keys and values."""
        return self.layers - (self.linear.layers if self.linear else 0)

    @property
    def layer_parameters(self) -> int:
        """Matrix elements of one decoder layer, on average over both kinds, that each row is multiplied with."""
        return self._outside_mlp + 3 * self.hidden * self.mlp * (self.active_experts if self.experts else 1)

    @property
    def stored_layer_parameters(self) -> int:
        """Matrix elements of one decoder layer, on average over both kinds."""
        return self._outside_mlp + 3 * self.hidden * self.mlp * max(1, self.experts)

    @property
    def _outside_mlp(self) -> int:
        queries = self.heads * (3 if self.gated else 2)  # the output's projection with them
        mixers = self.keyed_layers * self.hidden * self.head_dim * (queries + 2 * self.kv_heads)
        if self.linear:
            mixers += self.linear.layers * self.hidden * self.linear.width
        shared = 3 * self.shared_mlp + bool(self.shared_mlp)
        return mixers // self.layers + self.hidden * (self.experts + shared)


def parse_text(fields: Mapping[str, Any], tied: bool) -> TextDims:
    """The sizes in the fields of the language model."""
    heads, hidden = size_of(fields, "num_attention_heads"), size_of(fields, "hidden_size")
    linear = _parse_linear(fields)
    experts = next((name for name in ("num_experts", "num_local_experts") if name in fields), None)
    return TextDims(
        hidden=hidden,
        layers=size_of(fields, "num_hidden_layers"),
        heads=heads,
        kv_heads=size_of(fields, "num_key_value_heads", heads),
        head_dim=size_of(fields, "head_dim", hidden // heads),
        mlp=size_of(fields, "moe_intermediate_size" if experts else "intermediate_size"),
        vocabulary=size_of(fields, "vocab_size"),
        tied=tied,
        experts=size_of(fields, experts) if experts else 0,
        active_experts=size_of(fields, "num_experts_per_tok") if experts else 0,
        shared_mlp=int(fields.get("shared_expert_intermediate_size") or 0) if experts else 0,
        gated=linear is not None,
        linear=linear,
    )


def _parse_linear(fields: Mapping[str, Any]) -> LinearDims | None:
    if "linear_num_value_heads" not in fields:
        return None
    kinds, depth = fields.get("layer_types"), size_of(fields, "num_hidden_layers")
    every = size_of(fields, "full_attention_interval", 4)
    return LinearDims(
        indices=tuple(
            index
            for index in range(depth)
            if ((index + 1) % every if kinds is None else kinds[index] == "linear_attention")
        ),
        key_heads=size_of(fields, "linear_num_key_heads"),
        value_heads=size_of(fields, "linear_num_value_heads"),
        key_dim=size_of(fields, "linear_key_head_dim"),
        value_dim=size_of(fields, "linear_value_head_dim"),
    )


def size_of(fields: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """The integer of 1 or more in a field."""
    value = fields.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or value < 1:
        raise EstimateError(
            f"{name}={value!r} in config.json: must be an integer of 1 or more; give a complete config.json"
        )
    return value
