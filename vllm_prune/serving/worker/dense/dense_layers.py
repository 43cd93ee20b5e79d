"""Layers 0..L over dense rows and other rows: what one of them runs, what is dropped behind it, what the cache gets.

The layers are vLLM's own; only their attention is taken over for the call, to split the rows by where their keys and
values are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention

from vllm_prune.serving.worker.dense.attention import taken_over
from vllm_prune.serving.worker.dense.decoder_view import DecoderView
from vllm_prune.serving.worker.dense.drop import RowDropper
from vllm_prune.serving.worker.dense.parts import Part, make_parts
from vllm_prune.serving.worker.dense.rows import DenseRows
from vllm_prune.serving.worker.dense.scratch import ScratchCaches
from vllm_prune.serving.worker.dense.state_rows import StateRows, padding_last, run_in_order
from vllm_prune.serving.worker.dense.step import DenseStep, VideoRows
from vllm_prune.serving.worker.trace import VideoOutcome
from vllm_prune.serving.worker.upload import upload

RunPart = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""Of a layer's index, a part, and its positions, hidden states and residual: hidden states and residual behind it."""


@dataclass(frozen=True)
class Workshop:
    """What computes the dense rows of a step."""

    decoder: DecoderView
    dropper: RowDropper
    scratch: ScratchCaches
    states: StateRows
    most_rows: int
    """That a layer gets at a time."""


class DenseLayers:
    """Other rows and dense rows of a step, in this order, on their way through the layers."""

    def __init__(self, step: DenseStep, workshop: Workshop, positions: torch.Tensor, hidden: torch.Tensor) -> None:
        """`positions` [3, n] and `hidden` [n, C]: of other rows and dense rows."""
        self._step, self._decoder, self._dropper = step, workshop.decoder, workshop.dropper
        self._scratch, self._states, self._most_rows = workshop.scratch, workshop.states, workshop.most_rows
        self._num_other = len(step.other_rows)
        self._other = upload(step.other_rows, hidden.device)
        self._rows = DenseRows.of(step)
        self._positions, self._hidden = positions, hidden
        self._residual: torch.Tensor | None = None
        self._level_rows: list[torch.Tensor] = []
        """Of the layers to come, what is added behind them, [n, C]. Nothing is dropped before the last of them."""
        self._kept_kv: list[tuple[Attention, torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._query: torch.Tensor | None = None
        self._key: torch.Tensor | None = None
        self._value: torch.Tensor | None = None
        self._leading_rows = self._rows.leading()
        self._leading_batch_rows = upload(step.leading_batch_rows, hidden.device)
        self._lay_out()

    def _run_layer(self, index: int) -> None:
        self._hidden, self._residual = self._decoder.run_layer(index, self._positions, self._hidden, self._residual)

    def _run_dense_layer(self, index: int) -> None:
        """One decoder layer over other rows and dense rows; drops rows behind it if it is a pruning layer."""
        run_part = self._run_states if index in self._decoder.states else self._attending(index)
        self._run_in_parts(index, self._parts, run_part)
        if (attention := self._decoder.attention.get(index)) is not None:
            assert self._key is not None is not self._value
            self._kept_kv.append((attention, self._key, self._value, self._rows.alive))
        if self._level_rows:
            self._hidden = self._hidden + self._level_rows.pop(0)
        if self._dropper.prunes_at(index):
            self._drop(index)

    def _run_in_parts(self, index: int, parts: list[Part], run_part: RunPart) -> None:
        """One decoder layer over `parts`, each by `run_part`."""
        hidden, residual = self._hidden, self._residual
        for part in parts:
            before = None if residual is None else part.take(residual)
            done = run_part(index, part, part.take(self._positions, 1), part.take(hidden), before)
            # In place where there are several parts: nobody reads what their rows were before the layer.
            self._hidden = part.put(done[0], self._hidden, len(hidden))
            self._residual = part.put(done[1], self._residual, len(hidden))

    def _attending(self, index: int) -> RunPart:
        """Runs parts of a layer whose attention is taken over."""
        attention = self._decoder.attention[index]
        self._query = self._key = self._value = None
        attend = functools.partial(self._attend, attention, attention.forward, self._dropper.prunes_at(index))
        return self._with_attention(attention, attend)

    def _with_attention(self, attention: Attention, attend: Callable[..., torch.Tensor]) -> RunPart:
        """Runs parts of a layer with `attend` in place of its attention; it gets the part first."""

        def run(index: int, part: Part, *rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
            with taken_over(attention, functools.partial(attend, part)):
                return self._decoder.run_layer(index, *rows)

        return run

    def _run_states(
        self, index: int, part: Part, positions: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A part of a layer that keeps a state, which goes on from part to part and sees all rows there are."""
        run = functools.partial(self._decoder.run_layer, index)
        with self._states.of_part(self._decoder.states[index], self._step, part, self._rows.lengths):
            return run_in_order(run, padding_last(self._step, part), positions, hidden, residual)

    def _attend(
        self,
        attention: Attention,
        attend_paged: Callable[..., torch.Tensor],
        keep_query: bool,
        part: Part,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
    ) -> torch.Tensor:
        """Attention of other rows through vLLM's paged cache, of dense rows through the scratch cache.

        `keep_query`: whether a choice behind the layer reads the queries.
        """
        n, dim = part.num_other, attention.head_size
        output = torch.empty_like(q)
        if n:
            output[:n] = attend_paged(*(self._to_batch(x) for x in (q, k, v)))[self._other]
        key, value = (x[n:].unflatten(1, (attention.num_kv_heads, dim)).contiguous() for x in (k, v))
        if not n and part is self._parts[0]:
            self._write_slots(attention, key[self._leading], value[self._leading], self._leading_batch_rows)
        query = q[n:].unflatten(1, (attention.num_heads, dim)).contiguous()
        output[n:] = self._scratch.attend(attention, query, key, value, part.ranges)
        length = len(self._rows.alive)
        if keep_query:
            self._query = part.put_dense(query, self._query, length)
        self._key = part.put_dense(key, self._key, length)
        self._value = part.put_dense(value, self._value, length)
        return output

    def _to_batch(self, rows: torch.Tensor) -> torch.Tensor:
        """Other rows and leading rows at their places in the batch, zeros elsewhere (these slots are written later)."""
        batch = rows.new_zeros(self._step.num_batch_rows, rows.shape[1])
        batch[self._other] = rows[: self._num_other]
        batch[self._leading_batch_rows] = rows[self._num_other + self._leading]
        return batch

    def _lay_out(self) -> None:
        """Follows a change of the dense rows: room in the scratch cache, parts, and the leading rows in the first.

        Leading rows are those before the first video of each request. Their blocks may already serve other requests of
        this step as a cached prefix, so every layer writes their keys and values before it attends.
        """
        self._scratch.lay_out(self._rows.lengths)
        leading = [request.num_leading for request in self._step.requests]
        device = self._hidden.device
        self._parts = make_parts(self._num_other, leading, self._rows.lengths, self._most_rows, device)
        now = upload(torch.searchsorted(self._rows.alive, self._leading_rows), device)
        self._leading = torch.searchsorted(self._parts[0].dense, now)

    def _drop(self, index: int) -> None:
        """Goes on with other rows and those dense rows that stay behind pruning layer `index`."""
        assert self._residual is not None
        assert self._query is not None
        assert self._key is not None
        hidden = self._hidden[self._num_other :] + self._residual[self._num_other :]
        kept = self._dropper.choose(index, self._rows, self._query, self._key, hidden)
        rows = upload(torch.cat((torch.arange(self._num_other), self._num_other + kept)), hidden.device)
        self._hidden, self._residual = self._hidden[rows], self._residual[rows]
        self._positions = self._positions[:, rows]
        self._rows = self._rows.select(kept)
        if index < self._dropper.last_layer:
            self._lay_out()

    def outcome(self, video: VideoRows) -> VideoOutcome:
        """What became of a video, after `run`."""
        live = next(live for live in self._rows.requests() if video in live.request.videos)
        left = self._rows.rows_left(live, video)
        dense = video.video
        tokens, _ = dense.split(torch.arange(dense.info.counts.carried_rows, device=dense.slots.device))
        is_left = torch.isin(tokens.cpu(), left)
        positions = dense.positions[:, tokens[is_left.to(tokens.device)]]
        trace = dense.info.trace
        assert trace is not None  # kept from when it was encoded, as traces are written
        return VideoOutcome(trace, is_left.nonzero().squeeze(1), positions, self._dropper.importance[video])

    def _write_cache(self, batch_rows: torch.Tensor) -> None:
        found_in: torch.Tensor | None = None
        for attention, key, value, alive in self._kept_kv:
            if alive is not found_in:  # the same for all layers between two pruning layers
                kept, found_in = upload(torch.searchsorted(alive, self._rows.alive), key.device), alive
            self._write_slots(attention, key[kept], value[kept], batch_rows)

    def _write_slots(
        self, attention: Attention, key: torch.Tensor, value: torch.Tensor, batch_rows: torch.Tensor
    ) -> None:
        """Writes keys and values [n, G, D] into the paged cache, at the slots of `batch_rows` [n]."""
        slots = self._slots(attention)[batch_rows]
        attention.impl.do_kv_cache_update(attention, key, value, attention.kv_cache, slots)

    def _slots(self, attention: Attention) -> torch.Tensor:
        """The paged cache's slots of batch rows."""
        return get_forward_context().slot_mapping[attention.layer_name]
