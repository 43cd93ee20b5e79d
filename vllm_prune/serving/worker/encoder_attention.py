"""Reads off a vision encoder how much attention each of its tokens receives, for methods that ask for it.

While videos with such a method are encoded, hooks of PyTorch's look at the queries and keys of the encoder's last
attention, full or in windows; no matrix of weights is kept, and other videos pay nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather
from vllm.model_executor.layers.attention.mm_encoder_attention import MMEncoderAttention
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from vllm_prune.config import PruneConfig
from vllm_prune.methods.encoder_attention import received_attention


class EncoderAttention:
    """What the tokens of the videos being encoded receive, in the order in which they are encoded."""

    def __init__(self, layer: int = -1) -> None:
        """`layer`: of the encoder's attention layers, which one is read."""
        self._layer = layer
        self._reading = False
        self._received: list[torch.Tensor] = []

    @contextmanager
    def reading(self, encoder: Any, configs: Sequence[PruneConfig]) -> Iterator[None]:
        """Reads what `encoder` computes inside the `with` block, if one of the `configs` needs that."""
        if not any(config.needs_encoder_attention for config in configs):
            yield
            return
        layers = [module for module in encoder.modules() if isinstance(module, MMEncoderAttention)]
        hooks = (
            encoder.register_forward_pre_hook(self._lay_out, with_kwargs=True),
            layers[self._layer].register_forward_pre_hook(self._read, with_kwargs=True),
        )
        self._reading = True
        try:
            yield
        finally:
            self._reading, self._received = False, []
            for each in hooks:
                each.remove()

    def take(self, count: int) -> torch.Tensor | None:
        """[count] float32: what the next `count` tokens receive, 1 on average in each frame; None while not reading."""
        if not self._reading:
            return None
        received = torch.cat(self._received)
        self._received = [received[count:]]
        return received[:count]

    def _lay_out(self, encoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Makes the encoder's metadata ahead of it, which tell the order of cells within it."""
        metadata = kwargs.get("encoder_metadata")
        if metadata is None:
            grids: Any = kwargs.get("grid_thw", args[-1])
            metadata = encoder.prepare_encoder_metadata(grids if isinstance(grids, list) else grids.tolist())
        self._order, self._unit = metadata.get("window_index"), encoder.spatial_merge_size**2
        return args, {**kwargs, "encoder_metadata": metadata}

    def _read(self, attention: MMEncoderAttention, _args: Any, kwargs: dict[str, Any]) -> None:
        query, key = (kwargs[name].flatten(0, 1) for name in ("query", "key"))
        with gpu_sync_allowed():
            ends = kwargs["cu_seqlens"].tolist()
        received = received_attention(query, key, ends, attention.scale)
        by_cell = received.view(-1, self._unit).mean(1)
        if get_tensor_model_parallel_world_size() > 1:  # this rank has some of the heads
            by_cell = tensor_model_parallel_all_gather(by_cell[None], 0).mean(0)
        if self._order is not None:
            by_cell = torch.empty_like(by_cell).index_copy_(0, self._order, by_cell)
        self._received.append(by_cell)
