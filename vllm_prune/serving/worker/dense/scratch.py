"""Attention of dense rows: a second, short-lived paged cache beside vLLM's, read and written by vLLM's own backend.

The dense rows of a request are more than the blocks the scheduler gave it. So each layer of the dense prefix writes
them into a scratch cache of one layer, behind a copy of the blocks that hold the request's context, and the backend
attends to that: the same kernels, whatever its layout and packing, and several requests at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from vllm.model_executor.layers.attention import Attention

from vllm_prune.serving.worker.dense.paged_cache import PagedCache, build_metadata, step_metadata
from vllm_prune.serving.worker.dense.parts import Range
from vllm_prune.serving.worker.dense.step import DenseRequest
from vllm_prune.serving.worker.upload import upload


class ScratchCache:
    """The scratch cache of one step for requests with given contexts and numbers of dense rows."""

    def __init__(self, builder: Any, kv_cache: torch.Tensor, block_size: int, contexts: list[int], tables: list[Any]):
        """Lays out nothing yet; `lay_out` does.

        Args:
            builder: vLLM's metadata builder of the layers' backend.
            kv_cache: The cache of any of the layers, [blocks, ...].
            block_size: Tokens of a block.
            contexts: Tokens before the dense rows, for every request.
            tables: vLLM's block table [n] of every request.
        """
        self._builder, self._block_size, self._contexts = builder, block_size, contexts
        context_blocks = [-(-context // block_size) for context in contexts]
        self._source = torch.cat([table[:n] for table, n in zip(tables, context_blocks, strict=True)]).long()
        self._context_blocks = context_blocks
        self._like = kv_cache
        self._cache: torch.Tensor | None = None

    def lay_out(self, lengths: list[int]) -> None:
        """Gives every request room for its context and `lengths` dense rows."""
        device, size = self._like.device, self._block_size
        seq_lens = [c + n for c, n in zip(self._contexts, lengths, strict=True)]
        blocks = [-(-n // size) for n in seq_lens]
        first = [sum(blocks[:i]) for i in range(len(blocks))]
        table = torch.zeros(len(blocks), max(blocks), dtype=torch.int32)
        for i, n in enumerate(blocks):
            table[i, :n] = torch.arange(first[i], first[i] + n, dtype=torch.int32)
        slots = [
            torch.arange(first[i] * size + context, first[i] * size + seq_len)
            for i, (context, seq_len) in enumerate(zip(self._contexts, seq_lens, strict=True))
        ]
        targets = [torch.arange(f, f + n) for f, n in zip(first, self._context_blocks, strict=True)]
        self._targets = upload(torch.cat(targets), device)
        self.slots = upload(torch.cat(slots), device)
        self._table, self._starts = upload(table, device), [0, *itertools.accumulate(lengths)]
        self._whole = self._build([(0, n) for n in lengths])
        if self._cache is None or len(self._cache) < sum(blocks):
            # Zeros, since a kernel reads whole blocks, and NaN in rows it masks would spread.
            self._cache = torch.zeros_like(self._like[:1]).repeat(sum(blocks), *([1] * (self._like.dim() - 1)))

    def _build(self, ranges: list[Range]) -> tuple[Any, torch.Tensor]:
        """The backend's metadata for dense rows at `ranges` of every request, and their slots [n]."""
        device = self._table.device
        there = [index for index, (start, end) in enumerate(ranges) if start < end]
        lengths = [ranges[i][1] - ranges[i][0] for i in there]
        seq_lens = [self._contexts[i] + ranges[i][1] for i in there]
        slots = torch.cat([self.slots[self._starts[i] + ranges[i][0] : self._starts[i] + ranges[i][1]] for i in there])
        table = self._table[upload(torch.tensor(there), device)]
        return build_metadata(self._builder, table, lengths, seq_lens, slots), slots

    def attend(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        ranges: list[Range] | None = None,
    ) -> torch.Tensor:
        """Causal attention of dense rows to their contexts, to each other and to those before them.

        Args:
            layer: vLLM's `Attention` of this layer.
            query: [n, H, D]; key, value: [n, G, D].
            ranges: Of every request, which of its dense rows these are, the ones before them having been here; None for
                all.

        Returns:
            [n, H * D].
        """
        assert self._cache is not None
        if ranges is None or all(start == 0 for start, _ in ranges):
            self._copy_context(layer)
        output = torch.empty_like(query)
        if len(query):
            # Built for every call, since a backend may keep a part of it in buffers of its own.
            metadata, slots = self._whole if ranges is None else self._build(ranges)
            layer.impl.do_kv_cache_update(layer, key, value, self._cache, slots)
            layer.impl.forward(layer, query, key, value, self._cache, metadata, output)
        return output.flatten(1)

    def put(self, layer: Any, key: torch.Tensor, value: torch.Tensor) -> None:
        """The context of the only request, and keys and values [n, G, D] of its first n dense rows."""
        assert self._cache is not None
        self._copy_context(layer)
        layer.impl.do_kv_cache_update(layer, key, value, self._cache, self.slots[: len(key)])

    def _copy_context(self, layer: Any) -> None:
        assert self._cache is not None
        if len(self._source):
            self._cache[self._targets] = layer.kv_cache[self._source]


class ScratchCaches:
    """The scratch caches of one step, one for every group of layers that share blocks."""

    def __init__(self, paged: PagedCache, requests: Sequence[DenseRequest]) -> None:
        self._paged, self._requests = paged, requests
        self._lengths: list[int] = []
        self._caches: dict[int, ScratchCache] = {}
        self._laid_out: dict[int, list[int]] = {}

    def lay_out(self, lengths: list[int]) -> None:
        """Gives every request room for its context and `lengths` dense rows."""
        self._lengths = lengths

    def attend(
        self,
        attention: Attention,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        ranges: list[Range] | None,
    ) -> torch.Tensor:
        """Causal attention of dense rows; see `ScratchCache.attend`."""
        return self._cache_of(attention).attend(attention, query, key, value, ranges)

    def put(self, attention: Attention, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keys and values of the only request's first rows; see `ScratchCache.put`."""
        self._cache_of(attention).put(attention, key, value)

    def _cache_of(self, attention: Attention) -> ScratchCache:
        metadata = step_metadata(attention)
        group = id(metadata)
        if group not in self._caches:
            self._caches[group] = self._make(attention, metadata)
        cache = self._caches[group]
        if self._laid_out.get(group) is not self._lengths:
            cache.lay_out(self._lengths)
            self._laid_out[group] = self._lengths
        return cache

    def _make(self, attention: Attention, metadata: Any) -> ScratchCache:
        layout = self._paged.layout(attention)
        tables = [metadata.block_table[request.index] for request in self._requests]
        contexts = [request.context for request in self._requests]
        return ScratchCache(layout.builder, attention.kv_cache, layout.block_size, contexts, tables)
