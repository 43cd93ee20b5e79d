"""vLLM's paged cache as a dense prefix uses it: layer by layer, since a model may have several groups of layers."""

from __future__ import annotations

from typing import Any

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import CommonAttentionMetadata

from vllm_prune.serving.worker.dense.key_reader import KeyReader
from vllm_prune.serving.worker.upload import upload


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


def build_metadata(
    builder: Any, table: torch.Tensor, lengths: list[int], seq_lens: list[int], slots: torch.Tensor
) -> Any:
    """The backend's metadata of causal attention, for rows that no batch of vLLM's has.

    Args:
        builder: As `make_metadata_builder` makes it.
        table: Blocks of every request, [requests, n] int32.
        lengths: Rows of every request, at least one each.
        seq_lens: Of every request, its rows and all tokens before them.
        slots: Of all rows, [sum of lengths] int64.
    """
    starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    lens = torch.tensor(seq_lens, dtype=torch.int32)
    common = CommonAttentionMetadata(
        query_start_loc=upload(starts, table.device),
        query_start_loc_cpu=starts,
        seq_lens=upload(lens, table.device),
        num_reqs=len(lengths),
        num_actual_tokens=sum(lengths),
        max_query_len=max(lengths),
        max_seq_len=max(seq_lens),
        block_table_tensor=table,
        slot_mapping=slots,
        causal=True,
        seq_lens_cpu_upper_bound=lens,
    )
    return builder.build(common_prefix_len=0, common_attn_metadata=common)


class PagedRows:
    """Rows of one request in vLLM's paged cache, however many of them the batch has."""

    def __init__(self, layout: PagedLayout, table: torch.Tensor, context: int, length: int) -> None:
        """`table`: of the request, [1, n]; its `length` rows come behind `context` tokens."""
        index, size = torch.arange(context, context + length, device=table.device), layout.block_size
        self.slots = table[0].long()[index // size] * size + index % size
        """[length]"""
        self._builder, self._table, self._context = layout.builder, table, context

    def attend(
        self, attention: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int
    ) -> torch.Tensor:
        """Causal attention [n, H * D] of rows from `start` on, those before them having been here.

        Args:
            attention: Of the layer.
            query: This rank's heads, [n, H * D].
            key: [n, G * D].
            value: [n, G * D].
            start: The first of them.
        """
        end, dim, heads = start + len(query), attention.head_size, attention.num_kv_heads
        q = query.unflatten(1, (attention.num_heads, dim)).contiguous()
        k, v = (x.unflatten(1, (heads, dim)).contiguous() for x in (key, value))
        output, slots = torch.empty_like(q), self.slots[start:end]
        attention.impl.do_kv_cache_update(attention, k, v, attention.kv_cache, slots)
        metadata = build_metadata(self._builder, self._table, [end - start], [self._context + end], slots)
        attention.impl.forward(attention, q, k, v, attention.kv_cache, metadata, output)
        return output.flatten(1)
