"""Runs the decoder in a step that prefills videos whose tokens the question chooses.

Layers 0..L run once over the other requests' rows and the dense rows together; only attention is split. After a pruning
layer the videos' rows that were not chosen are gone; after the last one the rows take their places in the batch, the
keys and values of layers 0..L go into the paged cache for the kept rows alone, and the remaining layers are the normal
pass.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.forward_context import get_forward_context

from vllm_prune.serving.worker.dense.drop import RowDropper
from vllm_prune.serving.worker.dense.rows import DenseRows
from vllm_prune.serving.worker.dense.scratch import ScratchCache
from vllm_prune.serving.worker.dense.step import DenseStep, VideoRows
from vllm_prune.serving.worker.trace import VideoOutcome
from vllm_prune.serving.worker.upload import upload


class StepRun:
    """The state of one step."""

    def __init__(
        self,
        decoder: Any,
        step: DenseStep,
        dropper: RowDropper,
        scratch: ScratchCache,
        embeds: torch.Tensor,
        positions: torch.Tensor,
    ) -> None:
        """`decoder`: vLLM's Qwen2 model; embeds [batch rows, C], positions [3, batch rows]: of the step."""
        self._decoder, self._step, self._dropper, self._scratch = decoder, step, dropper, scratch
        self._num_other = len(step.other_rows)
        self._other = upload(step.other_rows, embeds.device)
        self._batch_positions = positions
        self._rows = DenseRows.of(step)
        self._hidden, self._positions = self._gather(embeds, positions)
        self._residual: torch.Tensor | None = None
        self._kept_kv: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._leading_rows = self._rows.leading()
        self._leading_batch_rows = upload(step.leading_batch_rows, embeds.device)
        self._lay_out()

    def _gather(self, embeds: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings [n, C] and positions [3, n] of other rows and dense rows."""
        hidden, where = [embeds[self._other]], [positions[:, self._other]]
        for request in self._step.requests:
            row = request.batch_start
            for rows in request.videos:
                first = rows.video.batch_row
                hidden += [embeds[row:first], rows.video.features]
                where += [positions[:, row:first], rows.video.positions.to(positions.device)]
                row = first + rows.video.info.counts.kept
            hidden.append(embeds[row : request.batch_end])
            where.append(positions[:, row : request.batch_end])
        return torch.cat(hidden), torch.cat(where, dim=1)

    def run(self) -> torch.Tensor:
        """Hidden states [batch rows, C]."""
        last = self._dropper.last_layer
        for index, layer in enumerate(self._decoder.layers):
            if index <= last:
                self._run_dense_layer(index, layer)
            else:
                self._hidden, self._residual = layer(self._positions, self._hidden, self._residual)
            if index == last:
                self._return_to_batch()
        hidden, _ = self._decoder.norm(self._hidden, self._residual)
        return hidden

    def _run_dense_layer(self, index: int, layer: Any) -> None:
        """One decoder layer over other rows and dense rows; drops rows behind it if it is a pruning layer."""
        attention = layer.self_attn
        if self._residual is None:
            self._residual, hidden = self._hidden, layer.input_layernorm(self._hidden)
        else:
            hidden, self._residual = layer.input_layernorm(self._hidden, self._residual)
        qkv, _ = attention.qkv_proj(hidden)
        q, k, v = qkv.split([attention.q_size, attention.kv_size, attention.kv_size], dim=-1)
        q, k = attention.rotary_emb(self._positions, q, k)
        output, _ = attention.o_proj(self._attend(attention, q, k, v))
        hidden, self._residual = layer.post_attention_layernorm(output, self._residual)
        self._hidden = layer.mlp(hidden)
        if self._dropper.prunes_at(index):
            self._drop(index, attention, q[self._num_other :], k[self._num_other :])

    def _attend(self, attention: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attention of other rows through vLLM's paged cache, of dense rows through the scratch cache."""
        n, dim = self._num_other, attention.head_dim
        output = torch.empty_like(q)
        if n:
            output[:n] = attention.attn(*(self._to_batch(x) for x in (q, k, v)))[self._other]
        key, value = (x[n:].unflatten(1, (attention.num_kv_heads, dim)).contiguous() for x in (k, v))
        if not n:
            self._write_slots(attention.attn, key[self._leading], value[self._leading], self._leading_batch_rows)
        query = q[n:].unflatten(1, (attention.num_heads, dim)).contiguous()
        output[n:] = self._scratch.attend(attention.attn, query, key, value)
        self._kept_kv.append((key, value, self._rows.alive))
        return output

    def _to_batch(self, rows: torch.Tensor) -> torch.Tensor:
        """Other rows and leading rows at their places in the batch, zeros elsewhere (these slots are written later)."""
        batch = rows.new_zeros(self._step.num_batch_rows, rows.shape[1])
        batch[self._other] = rows[: self._num_other]
        batch[self._leading_batch_rows] = rows[self._num_other + self._leading]
        return batch

    def _lay_out(self) -> None:
        """Follows a change of the dense rows: room in the scratch cache, and where the leading rows are now.

        Leading rows are those before the first video of each request. Their blocks may already serve other requests of
        this step as a cached prefix, so every layer writes their keys and values before it attends.
        """
        self._scratch.lay_out(self._rows.lengths)
        self._leading = upload(torch.searchsorted(self._rows.alive, self._leading_rows), self._hidden.device)

    def _drop(self, index: int, attention: Any, q: torch.Tensor, k: torch.Tensor) -> None:
        """Goes on with other rows and those dense rows that stay behind pruning layer `index`."""
        assert self._residual is not None
        hidden = self._hidden[self._num_other :] + self._residual[self._num_other :]
        kept = self._dropper.choose(index, self._rows, attention, (q, k), hidden)
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
        positions = self._batch_positions.clone()
        positions[:, rows] = self._positions
        self._positions = positions

    def outcome(self, video: VideoRows) -> VideoOutcome:
        """What became of a video, after `run`."""
        live = next(live for live in self._rows.requests() if video in live.request.videos)
        kept = self._rows.tokens_left(live, video)
        positions = video.video.positions[:, kept.to(video.video.positions.device)]
        trace = video.video.info.trace
        assert trace is not None  # kept from when it was encoded, as traces are written
        return VideoOutcome(trace, kept, positions, self._dropper.importance[video])

    def _write_cache(self, batch_rows: torch.Tensor) -> None:
        found_in: torch.Tensor | None = None
        for layer, (key, value, alive) in zip(self._decoder.layers, self._kept_kv, strict=False):
            if alive is not found_in:  # the same for all layers between two pruning layers
                kept, found_in = upload(torch.searchsorted(alive, self._rows.alive), key.device), alive
            self._write_slots(layer.self_attn.attn, key[kept], value[kept], batch_rows)

    def _write_slots(self, attention: Any, key: torch.Tensor, value: torch.Tensor, batch_rows: torch.Tensor) -> None:
        """Writes keys and values [n, G, D] into the paged cache, at the slots of `batch_rows` [n]."""
        slots = get_forward_context().slot_mapping[attention.layer_name][batch_rows]
        attention.impl.do_kv_cache_update(attention, key, value, attention.kv_cache, slots)
