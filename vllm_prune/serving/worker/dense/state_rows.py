"""Layers of Gated DeltaNet over rows that vLLM did not schedule: dense ones, part after part.

Such a layer has one state for each request, in a slot of the cache that stays the request's own as long as it runs. So
all that differs from vLLM's own call is how many rows each request has. That is in the metadata of the step, which the
layer finds by its name; vLLM's own builder makes it for the rows of a part.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.gdn.base import GatedDeltaNetAttention
from vllm.v1.attention.backend import CommonAttentionMetadata

from vllm_prune.serving.worker.dense.parts import Part
from vllm_prune.serving.worker.dense.step import DenseStep
from vllm_prune.serving.worker.upload import upload


class StateRows:
    """What tells layers of Gated DeltaNet whose rows they get."""

    def __init__(self, vllm_config: VllmConfig, layers: Iterable[GatedDeltaNetAttention]) -> None:
        self._config, self._example = vllm_config, next(iter(layers), None)
        self._builder: Any = None

    @contextlib.contextmanager
    def of_part(self, layer: GatedDeltaNetAttention, step: DenseStep, part: Part, lengths: list[int]) -> Iterator[None]:
        """Within it, `layer` takes the rows it gets for those of `part`, its padding last.

        Args:
            layer: To be called once.
            step: The step under way.
            part: Of the dense rows that are left, and of the others.
            lengths: Dense rows that every request of `step` has left.
        """
        metadata = get_forward_context().attn_metadata
        of_step = metadata[layer.prefix]
        # Built for every call, since the builder may keep a part of it in buffers of its own.
        metadata[layer.prefix] = self._build(of_step, step, part, lengths)
        try:
            yield
        finally:
            metadata[layer.prefix] = of_step

    def _build(self, of_step: Any, step: DenseStep, part: Part, lengths: list[int]) -> Any:
        slots = of_step.non_spec_state_indices_tensor
        rows = _rows_of_requests(step, part, lengths)
        device = slots.device
        starts = torch.tensor([0, *(count for _, count, _ in rows)], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        lens = torch.tensor([end for _, _, end in rows], dtype=torch.int32)
        own = slots[upload(torch.tensor([index for index, _, _ in rows]), device)]
        common = CommonAttentionMetadata(
            query_start_loc=upload(starts, device),
            query_start_loc_cpu=starts,
            seq_lens=upload(lens, device),
            num_reqs=len(rows),
            num_actual_tokens=int(starts[-1]),
            max_query_len=max(count for _, count, _ in rows),
            max_seq_len=int(lens.max()),
            block_table_tensor=own[:, None],
            slot_mapping=own,  # which the builder does not read
            causal=True,
            seq_lens_cpu_upper_bound=lens,
            is_prefilling=torch.ones(len(rows), dtype=torch.bool),
        )
        return self._make_builder(device).build(common_prefix_len=0, common_attn_metadata=common)

    def _make_builder(self, device: torch.device) -> Any:
        if self._builder is None:
            layer = self._example
            assert layer is not None
            make, spec = layer.get_attn_backend().get_builder_cls(), layer.get_kv_cache_spec(self._config)
            with set_current_vllm_config(self._config):
                self._builder = make(spec, [layer.prefix], self._config, device)
        return self._builder


def _rows_of_requests(step: DenseStep, part: Part, lengths: list[int]) -> list[tuple[int, int, int]]:
    """Of every request with rows in `part`, as they come there: its place in the batch, how many, and their end."""
    rows: list[tuple[int, int, int]] = []
    if part.num_other:
        starts, dense = step.batch.query_start, {request.index for request in step.requests}
        for index, end in enumerate(step.batch.seq_lens):
            count = starts[index + 1] - starts[index]
            if count and index not in dense:
                rows.append((index, count, end))
    ranges = part.ranges if part.ranges is not None else [(0, length) for length in lengths]
    for request, (first, last) in zip(step.requests, ranges, strict=True):
        if first < last:
            rows.append((request.index, last - first, request.context + last))
    return rows


def padding_last(step: DenseStep, part: Part) -> torch.Tensor | None:
    """The order [n] in which a layer gets a part's rows: padding goes last, which it does not compute; None: theirs."""
    padding = step.num_padding
    if not part.num_other or not padding:
        return None
    real, device = part.num_other - padding, part.rows.device
    order = torch.cat(
        (torch.arange(real), torch.arange(part.num_other, len(part.rows)), torch.arange(real, part.num_other))
    )
    return upload(order, device)


def run_in_order(
    run: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    order: torch.Tensor | None,
    positions: torch.Tensor,
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `run` gives for the rows in `order` [n], in their own order; see `DecoderView.run_layer`."""
    if order is None:
        return run(positions, hidden, residual)
    done = run(positions[:, order], hidden[order], None if residual is None else residual[order])
    back = order.argsort()
    return done[0][back], done[1][back]
