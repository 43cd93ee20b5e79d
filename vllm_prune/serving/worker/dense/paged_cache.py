"""vLLM's paged cache as a dense prefix uses it: layer by layer, since a model may have several groups of layers."""

from __future__ import annotations

from typing import Any

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention

from vllm_prune.serving.worker.dense.key_reader import KeyReader


class PagedLayout:
    """How the paged cache of layers with one backend and one specification is laid out."""

    def __init__(self, vllm_config: VllmConfig, attention: Attention) -> None:
        """`attention`: one of them, its cache in place."""
        self.block_size = block_size_of(attention)
        self.builder = make_metadata_builder(vllm_config, attention, self.block_size)
        self._example = attention
        self._reader: KeyReader | None = None

    @property
    def reader(self) -> KeyReader:
        """Reads keys back."""
        if self._reader is None:
            self._reader = KeyReader(self._example, self.block_size)
        return self._reader


class PagedCache:
    """The paged cache of all layers."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        self._config = vllm_config
        self._layouts: dict[Any, PagedLayout] = {}

    def layout(self, attention: Attention) -> PagedLayout:
        """Of a layer."""
        key = (attention.get_attn_backend(), attention.get_kv_cache_spec(self._config))
        if key not in self._layouts:
            self._layouts[key] = PagedLayout(self._config, attention)
        return self._layouts[key]

    def keys(self, attention: Attention, index: int, length: int) -> torch.Tensor:
        """The first `length` keys [length, G, D] that a layer has of request `index` of the step."""
        if length == 0:
            return attention.kv_cache.new_empty(0, attention.num_kv_heads, attention.head_size)
        table = step_metadata(attention).block_table[index]
        return self.layout(attention).reader.read(attention, table, length)


def step_metadata(attention: Attention) -> Any:
    """The backend's metadata of the step under way, one object for all layers of a group that share blocks."""
    return get_forward_context().attn_metadata[attention.layer_name]


def block_size_of(attention: Attention) -> int:
    """Tokens of a block, as the backend's kernels see it: vLLM's own blocks may be split for them."""
    per_token = attention.num_kv_heads * (attention.head_size + attention.head_size_v)
    return attention.kv_cache[0].numel() // per_token


def make_metadata_builder(vllm_config: VllmConfig, attention: Attention, block_size: int) -> Any:
    """A metadata builder of the layer's backend, for a scratch cache with blocks of `block_size` tokens."""
    spec = attention.get_kv_cache_spec(vllm_config)
    assert spec is not None
    builder = attention.get_attn_backend().get_builder_cls()
    with set_current_vllm_config(vllm_config):
        spec = spec.copy_with_new_block_size(block_size)
        return builder(spec, [attention.layer_name], vllm_config, attention.kv_cache.device)
