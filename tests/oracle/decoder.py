"""Hugging Face's decoder layers, their attention spelled out over an explicit cache of keys and values.

Layers of linear attention run as they are: what they keep of the rows so far is a state, which nothing leaves again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_NAME = "oracle"


class KVCache:
    """Of each layer the keys (rotated) and values of the rows so far, both [S, kv heads, head dim], or its state."""

    def __init__(self, config: Any) -> None:
        """`config`: of the decoder."""
        self.keys: list[Tensor | None] = [None] * config.num_hidden_layers
        self.values: list[Tensor | None] = [None] * config.num_hidden_layers
        self.states = DynamicCache(config=config)

    def length(self) -> int:
        """S, the number of rows at every layer that has keys, between two parts of a prompt."""
        return max((len(keys) for keys in self.keys if keys is not None), default=0)

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Adds rows [R, kv heads, head dim] at the end and returns all keys and all values of the layer."""
        old_key, old_value = self.keys[layer], self.values[layer]
        keys = key if old_key is None else torch.cat([old_key, key])
        values = value if old_value is None else torch.cat([old_value, value])
        self.keys[layer], self.values[layer] = keys, values
        return keys, values

    def compact(self, layer: int, start: int, kept: Tensor) -> None:
        """Removes from the rows at `start` and after it those that are not `kept` [S - start] (bool)."""
        for stored in (self.keys, self.values):
            rows = stored[layer]
            if rows is None:
                continue  # a state
            stored[layer] = torch.cat([rows[:start], rows[start:][kept]])


def run_layer(
    model: PreTrainedModel, layer: int, hidden: Tensor, positions: Tensor, cache: KVCache
) -> tuple[Tensor, Tensor]:
    """One decoder layer, Hugging Face's own but for its attention, over R rows that are added to those in the cache.

    Args:
        hidden: [R, C].
        positions: [3, R].

    Returns:
        The rows after the layer [R, C], and the attention weights [heads, R, S] over all S rows in the cache; none,
        [0, R, S], of linear attention.
    """
    decoder = model.model.language_model
    seen: list[Tensor] = []

    def over_the_cache(
        module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, None]:
        keys, values = cache.append(layer, key[0].transpose(0, 1), value[0].transpose(0, 1))
        mixed, weights = attend(query[0].transpose(0, 1), keys, values, module.scaling)
        seen.append(weights)
        return mixed.unflatten(1, (len(weights), -1))[None], None

    with _attention(decoder.config, over_the_cache):
        output = decoder.layers[layer](
            hidden[None],
            attention_mask=None,
            position_embeddings=decoder.rotary_emb(hidden[None], _rotated_by(decoder, positions)),
            **({"past_key_values": cache.states} if layer in stateful_layers(model) else {}),
        )
    return output[0], seen[0] if seen else hidden.new_empty(0, len(hidden), cache.length())


def stateful_layers(model: PreTrainedModel) -> list[int]:
    """Layers of linear attention."""
    kinds = getattr(model.model.language_model.config, "layer_types", None) or ()
    return [index for index, kind in enumerate(kinds) if kind == "linear_attention"]


def _rotated_by(decoder: Any, positions: Tensor) -> Tensor:
    """As a decoder takes positions [3, R]; one without M-RoPE takes one of three equal ones."""
    return positions[:, None] if "mrope_section" in decoder.config.rope_parameters else positions[:1]


@contextlib.contextmanager
def _attention(config: Any, function: Callable[..., Any]) -> Iterator[None]:
    """Layers of `config` call `function` with what is behind their projections, norms and rotation."""
    before = config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(_NAME, function)
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def attend(query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Causal attention of the last R of S rows: mixed values [R, heads * head dim], weights [heads, R, S]."""
    (rows, heads, _), total = query.shape, len(keys)
    shared = heads // keys.shape[1]
    keys, values = (x.repeat_interleave(shared, dim=1).transpose(0, 1) for x in (keys, values))  # [heads, S, head dim]
    scores = query.transpose(0, 1) @ keys.mT * scaling
    visible = torch.arange(total) <= torch.arange(total - rows, total)[:, None]
    weights = nn.functional.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1, dtype=torch.float32)
    return (weights @ values).transpose(0, 1).flatten(1), weights


def logits_of(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """[vocab] from one row [C] after the last layer."""
    return model.lm_head(model.model.language_model.norm(hidden))
