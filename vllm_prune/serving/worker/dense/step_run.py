"""Runs the decoder in a step that prefills videos whose tokens the question chooses.

Layers 0..L run once over the other requests' rows and the dense rows together. The layers are vLLM's own; only their
attention is taken over for the call, to split the rows by where their keys and values are. After a pruning layer the
videos' rows that were not chosen are gone; after the last one the rows take their places in the batch, the keys and
values of layers 0..L go into the paged cache for the kept rows alone, and the remaining layers are the normal pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention

from vllm_prune.serving.worker.dense.attention import taken_over
from vllm_prune.serving.worker.dense.captured import CapturedLayers
from vllm_prune.serving.worker.dense.decoder_view import DecoderView
from vllm_prune.serving.worker.dense.drop import RowDropper
from vllm_prune.serving.worker.dense.parts import Part, make_parts
from vllm_prune.serving.worker.dense.rows import DenseRows
from vllm_prune.serving.worker.dense.scratch import ScratchCaches
from vllm_prune.serving.worker.dense.state_rows import StateRows, padding_last, run_in_order
from vllm_prune.serving.worker.dense.step import DenseStep, DenseVideo, VideoRows
from vllm_prune.serving.worker.trace import VideoOutcome
from vllm_prune.serving.worker.upload import upload

RunPart = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""Of a layer's index, a part, and its positions, hidden states and residual: hidden states and residual behind it."""


class StepRun:
    """The state of one step."""

    def __init__(
        self,
        decoder: DecoderView,
        step: DenseStep,
        dropper: RowDropper,
        scratch: ScratchCaches,
        states: StateRows,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        most_rows: int,
        captured: CapturedLayers | None = None,
    ) -> None:
        """Of the step: embeds [batch rows, C], positions [3, batch rows]; a layer gets `most_rows` rows at a time."""
        self._captured = captured
        self._decoder, self._step, self._dropper = decoder, step, dropper
        self._scratch, self._states, self._most_rows = scratch, states, most_rows
        self._num_other = len(step.other_rows)
        self._other = upload(step.other_rows, embeds.device)
        self._batch_positions = positions
        self._rows = DenseRows.of(step)
        self._positions = self._gather(positions, lambda video: video.positions.to(positions.device), dim=1)
        self._hidden = decoder.enter(self._gather_rows(embeds, 0))
        levels = enumerate(decoder.take_level_rows(len(embeds)), start=1)
        self._level_rows = [self._gather_rows(rows, level) for level, rows in levels]
        """Of the layers to come, what is added behind them, [n, C]. Nothing is dropped before the last of them."""
        self._residual: torch.Tensor | None = None
        self._kept_kv: list[tuple[Attention, torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._query: torch.Tensor | None = None
        self._key: torch.Tensor | None = None
        self._value: torch.Tensor | None = None
        self._leading_rows = self._rows.leading()
        self._leading_batch_rows = upload(step.leading_batch_rows, embeds.device)
        self._lay_out()

    def _gather_rows(self, batch: torch.Tensor, level: int) -> torch.Tensor:
        """Of [batch rows, C]: other rows and dense rows, [n, C]."""
        return self._gather(batch, lambda video: video.features_at(level, batch.shape[1]))

    def _gather(
        self, batch: torch.Tensor, of_video: Callable[[DenseVideo], torch.Tensor], dim: int = 0
    ) -> torch.Tensor:
        """Other rows and dense rows, of `batch` with what belongs to batch rows along `dim`, and of the videos."""
        found = [batch.index_select(dim, self._other)]
        for request in self._step.requests:
            row = request.batch_start
            for rows in request.videos:
                first = rows.video.batch_row
                found += [batch.narrow(dim, row, first - row), of_video(rows.video)]
                row = first + rows.video.info.counts.rows
            found.append(batch.narrow(dim, row, request.batch_end - row))
        return torch.cat(found, dim)

    def run(self) -> torch.Tensor:
        """Hidden states [batch rows, C]."""
        last = self._dropper.last_layer
        for index in range(len(self._decoder.layers)):
            if self._captured is not None:
                alive = self._rows.alive if index <= last else None
                self._captured.take(index, self._hidden, self._residual, alive)
            if index <= last:
                self._run_dense_layer(index)
            else:
                self._run_layer(index)
            if index == last:
                self._return_to_batch()
        assert self._residual is not None
        return self._decoder.leave(self._hidden, self._residual)

    def _run_layer(self, index: int) -> None:
        self._hidden, self._residual = self._decoder.run_layer(index, self._positions, self._hidden, self._residual)

    def _run_dense_layer(self, index: int) -> None:
        """One decoder layer over other rows and dense rows; drops rows behind it if it is a pruning layer."""
        run_part = self._run_states if index in self._decoder.states else self._attending(index)
        hidden, residual = self._hidden, self._residual
        for part in self._parts:
            before = None if residual is None else part.take(residual)
            done = run_part(index, part, part.take(self._positions, 1), part.take(hidden), before)
            # In place where there are several parts: nobody reads what their rows were before the layer.
            self._hidden = part.put(done[0], self._hidden, len(hidden))
            self._residual = part.put(done[1], self._residual, len(hidden))
        if (attention := self._decoder.attention.get(index)) is not None:
            assert self._key is not None is not self._value
            self._kept_kv.append((attention, self._key, self._value, self._rows.alive))
        if self._level_rows:
            self._hidden = self._hidden + self._level_rows.pop(0)
        if self._dropper.prunes_at(index):
            self._drop(index)

    def _attending(self, index: int) -> RunPart:
        """Runs parts of a layer whose attention is taken over."""
        attention = self._decoder.attention[index]
        self._query = self._key = self._value = None
        attend = functools.partial(self._attend, attention, attention.forward, self._dropper.prunes_at(index))

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

    def _return_to_batch(self) -> None:
        """Stage 3: kept rows to their batch rows, their keys and values to the paged cache."""
        assert self._residual is not None
        dense_rows = upload(self._step.dense_batch_rows, self._hidden.device)
        rows = torch.cat((self._other, dense_rows))
        self._write_cache(dense_rows)
        order = torch.empty_like(rows)
        order[rows] = torch.arange(len(rows), device=rows.device)
        self._hidden, self._residual = self._hidden[order], self._residual[order]
        if self._captured is not None:
            self._captured.return_to_batch(self._rows, self._num_other, order)
        positions = self._batch_positions.clone()
        positions[:, rows] = self._positions
        self._positions = positions

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
        slots = get_forward_context().slot_mapping[attention.layer_name][batch_rows]
        attention.impl.do_kv_cache_update(attention, key, value, attention.kv_cache, slots)
