"""Reads keys back out of vLLM's paged cache, however the backend packs them.

Importance needs the keys of the context, which only the paged cache holds, and backends reorder a block's content for
their kernels (AMX on the CPU interleaves pairs, for one). So the order is found by writing: a block is filled through
the backend with keys that spell their own index, and read as plain memory.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

_BASE = 64  # digits 1..64 are exact in every precision that a cache can have, and 0 marks what is not a key


class KeyReader:
    """Reads keys of layers that share a layout."""

    def __init__(self, layer: Any, block_size: int) -> None:
        """`layer`: vLLM's `Attention`, its cache in place; `block_size`: tokens of a block."""
        self._shape = (block_size, layer.num_kv_heads, layer.head_size)
        self._order = self._find_order(layer)

    def _find_order(self, layer: Any) -> torch.Tensor:
        """Offset within a block's memory of every element of its keys, [block_size * G * D]."""
        count = self._shape[0] * self._shape[1] * self._shape[2]
        index = torch.arange(count, device=layer.kv_cache.device)
        memory = torch.zeros(layer.kv_cache[0].numel(), dtype=torch.long, device=index.device)
        is_key = torch.zeros_like(memory, dtype=torch.bool)
        place = 1
        while place <= count:
            block = self._write(layer, (index // place) % _BASE + 1)
            is_key = block > 0
            memory += (block - 1) * place
            place *= _BASE
        with gpu_sync_allowed():  # once for all layers and steps
            offsets = is_key.nonzero().squeeze(1)
        order = torch.empty_like(index)
        order[memory[offsets]] = offsets
        return order

    def _write(self, layer: Any, digits: torch.Tensor) -> torch.Tensor:
        """One block's memory after keys `digits` and values of zero were written through the backend."""
        cache = torch.zeros_like(layer.kv_cache[:1])
        key = digits.view(self._shape).to(cache.dtype)
        slots = torch.arange(self._shape[0], device=cache.device)
        layer.impl.do_kv_cache_update(layer, key, torch.zeros_like(key), cache, slots)
        return cache.reshape(-1).long()

    def read(self, layer: Any, table: torch.Tensor, length: int) -> torch.Tensor:
        """The first `length` keys [length, G, D] of a request whose block table [n] is `table`."""
        block_size, groups, dim = self._shape
        blocks = layer.kv_cache[table[: -(-length // block_size)].long()].reshape(-1, layer.kv_cache[0].numel())
        return blocks[:, self._order].view(-1, groups, dim)[:length]
