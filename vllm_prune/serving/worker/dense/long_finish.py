"""The last step of a dense prefix that stretched over several: choice, compaction, and the layers above.

What was kept of it is more than the batch has of the request in this step. So the layers above run over all of that,
apart from the batch, and attend to vLLM's paged cache through metadata of their own.
"""

from __future__ import annotations

import functools

import torch
from vllm.model_executor.layers.attention import Attention

from vllm_prune.serving.worker.dense.dense_layers import DenseLayers, Workshop
from vllm_prune.serving.worker.dense.long_prefix import LongPrefix
from vllm_prune.serving.worker.dense.paged_cache import PagedCache, PagedRows, step_metadata
from vllm_prune.serving.worker.dense.parts import Part, make_parts
from vllm_prune.serving.worker.dense.step import DenseRequest, DenseStep


class LongFinish(DenseLayers):
    """Goes on behind layer L with a complete prefix."""

    def __init__(self, prefix: LongPrefix, step: DenseStep, workshop: Workshop, paged: PagedCache) -> None:
        """`step`: the prefix as a step of its own."""
        super().__init__(step, workshop, prefix.positions, prefix.hidden)
        self._residual = prefix.residual
        kept = zip(workshop.decoder.attention.values(), prefix.keys, prefix.values, strict=False)
        self._kept_kv = [(attention, key, value, self._rows.alive) for attention, key, value in kept]
        self._key = prefix.keys[-1]
        self._query, self._first, self._paged = prefix.query, prefix.span.layer, paged
        self._placed: dict[int, PagedRows] = {}

    @property
    def request(self) -> DenseRequest:
        """Whose it is; its batch rows are its prompt tokens."""
        return self._step.requests[0]

    def run(self) -> torch.Tensor:
        """Hidden states [K + S, C] of all of its prompt tokens."""
        last = self._dropper.last_layer
        self._drop(self._first)
        for index in range(self._first + 1, last + 1):
            self._run_dense_layer(index)
        kept = torch.arange(self._step.num_batch_rows, device=self._hidden.device)
        self._write_cache(kept)
        parts = make_parts(0, [0], self._rows.lengths, self._most_rows, self._hidden.device)
        for index in range(last + 1, len(self._decoder.layers)):
            attention = self._decoder.attention[index]
            attend = functools.partial(self._attend_paged, attention)
            self._run_in_parts(index, parts, self._with_attention(attention, attend))
        assert self._residual is not None
        return self._decoder.leave(self._hidden, self._residual)

    def _attend_paged(
        self, attention: Attention, part: Part, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        start = part.ranges[0][0] if part.ranges else 0
        return self._rows_of(attention).attend(attention, q, k, v, start)

    def _slots(self, attention: Attention) -> torch.Tensor:
        return self._rows_of(attention).slots

    def _rows_of(self, attention: Attention) -> PagedRows:
        metadata = step_metadata(attention)
        if id(metadata) not in self._placed:
            request, layout = self._step.requests[0], self._paged.layout(attention)
            table = metadata.block_table[request.index : request.index + 1]
            self._placed[id(metadata)] = PagedRows(layout, table, request.context, self._step.num_batch_rows)
        return self._placed[id(metadata)]
