"""Decoder layers with Hugging Face's weights, attention spelled out, over an explicit cache of keys and values."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb


class KVCache:
    """Of each layer the keys (rotated) and values of the rows so far, both [S, kv heads, head dim]."""

    def __init__(self, depth: int) -> None:
        self.keys: list[Tensor | None] = [None] * depth
        self.values: list[Tensor | None] = [None] * depth

    def length(self, layer: int) -> int:
        """S, the number of rows at `layer`."""
        keys = self.keys[layer]
        return 0 if keys is None else len(keys)

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
            assert rows is not None
            stored[layer] = torch.cat([rows[:start], rows[start:][kept]])


def run_layer(
    model: PreTrainedModel, layer: int, hidden: Tensor, positions: Tensor, cache: KVCache
) -> tuple[Tensor, Tensor]:
    """One decoder layer over R rows that come after those in the cache, and are added to it.

    Args:
        hidden: [R, C].
        positions: [3, R].

    Returns:
        The rows after the layer [R, C], and the attention weights [heads, R, S] over all S rows in the cache.
    """
    block = model.model.language_model.layers[layer]
    query, key, value = project(model, layer, block.input_layernorm(hidden), positions)
    keys, values = cache.append(layer, key, value)
    mixed, weights = attend(query, keys, values, block.self_attn.scaling)
    hidden = hidden + block.self_attn.o_proj(mixed)
    return hidden + block.mlp(block.post_attention_layernorm(hidden)), weights


def project(model: PreTrainedModel, layer: int, normed: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries [R, heads, head dim], rotated keys and values [R, kv heads, head dim] of `normed` [R, C]."""
    attention = model.model.language_model.layers[layer].self_attn
    query, key, value = (
        linear(normed).unflatten(1, (-1, attention.head_dim))
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    cos, sin = model.model.language_model.rotary_emb(normed, positions[:, None])
    query, key = apply_rotary_pos_emb(query, key, cos[0], sin[0])
    return query, key, value


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
