"""Runs the decoder in a step that prefills videos whose tokens the question chooses.

Layers 0..L run once over the other requests' rows and the dense rows together; only attention is split. After a pruning
layer the videos' rows that were not chosen are gone; after the last one the rows take their places in the batch, the
keys and values of layers 0..L go into the paged cache for the kept rows alone, and the remaining layers are the normal
pass.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context

from vllm_prune.config import PruneConfigError
from vllm_prune.serving.dense.choose import choose_tokens, measure_importance
from vllm_prune.serving.dense.key_reader import KeyReader
from vllm_prune.serving.dense.rows import DenseRows
from vllm_prune.serving.dense.scratch import ScratchCache, make_metadata_builder
from vllm_prune.serving.dense.step import Batch, DenseRequest, DenseStep, VideoRows
from vllm_prune.serving.trace import TraceWriter, VideoOutcome

SUPPORTED_BACKENDS = ("FLASH_ATTN", "TRITON_ATTN", "CPU_ATTN")
"""Backends that write keys and values apart from attention and name their metadata alike."""


class DensePrefix:
    """Dense prefixes for one decoder of vLLM's Qwen2 family."""

    def __init__(self, vllm_config: VllmConfig, language_model: Any, trace: TraceWriter | None) -> None:
        self._config = vllm_config
        self._trace = trace
        self._decoder = language_model.model
        self._attention = [layer.self_attn.attn for layer in self._decoder.layers]
        self._builder: Any = None
        self._reader: KeyReader | None = None

    def check_backend(self) -> None:
        """Raises where the attention backend has no cache that can be written apart from attention."""
        name = self._attention[0].get_attn_backend().get_name()
        if name not in SUPPORTED_BACKENDS:
            raise PruneConfigError(
                f'attention backend {name}: method "attention" supports {", ".join(SUPPORTED_BACKENDS)}; choose one '
                f"with --attention-backend, or a query-free method and --prune-override tighten"
            )

    def reserve_memory(self, num_rows: int) -> torch.Tensor:
        """What a step with `num_rows` dense rows takes beside the rows that vLLM schedules, in one allocation.

        Held during vLLM's memory profiling, it is what the paged cache leaves free for such a step.
        """
        layer, attention = self._decoder.layers[0], self._attention[0]
        kv_width = 2 * attention.num_kv_heads * attention.head_size
        activations = 2 * layer.mlp.gate_up_proj.output_size_per_partition + 6 * layer.hidden_size
        kept_kv = kv_width * (len(self._attention) + 1)
        weight = layer.input_layernorm.weight
        return torch.empty(num_rows * (activations + kept_kv), dtype=weight.dtype, device=weight.device)

    def batch(self) -> Batch:
        """What vLLM scheduled in the step under way."""
        metadata = self._metadata()
        return Batch(metadata.query_start_loc.tolist(), metadata.seq_lens.tolist())

    def _metadata(self) -> Any:
        return get_forward_context().attn_metadata[self._attention[0].layer_name]

    def run(self, step: DenseStep, inputs_embeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Hidden states [batch rows, C] of the step.

        Args:
            step: Its rows.
            inputs_embeds: [batch rows, C]; those of the videos to be pruned are not looked at.
            positions: [3, batch rows]; likewise.
        """
        begin = time.perf_counter()
        run = _StepRun(self, step, inputs_embeds, positions)
        hidden = run.run()
        if self._trace is not None:
            for request in step.requests:
                outcomes = [run.outcome(rows) for rows in request.videos]
                self._trace.write(list(request.videos[0].video.prompt), outcomes, time.perf_counter() - begin)
        return hidden

    def scratch(self, step: DenseStep) -> ScratchCache:
        """A scratch cache for `step`."""
        layer = self._attention[0]
        if self._builder is None:
            self._builder = make_metadata_builder(self._config, self._attention, layer.kv_cache.device)
        block_table = self._metadata().block_table
        tables = [block_table[request.index] for request in step.requests]
        contexts = [request.context for request in step.requests]
        return ScratchCache(self._builder, layer.kv_cache, self.block_size, contexts, tables)

    @property
    def block_size(self) -> int:
        """Tokens of a block of the paged cache."""
        return self._builder.kv_cache_spec.block_size

    def context_keys(self, layer: int, request: DenseRequest) -> torch.Tensor:
        """Keys [context, G, D] of what a request had computed before this step."""
        attention = self._attention[layer]
        if request.context == 0:
            return attention.kv_cache.new_empty(0, attention.num_kv_heads, attention.head_size)
        if self._reader is None:
            self._reader = KeyReader(attention, self.block_size)
        return self._reader.read(attention, self._metadata().block_table[request.index], request.context)


class _StepRun:
    """The state of one step."""

    def __init__(self, prefix: DensePrefix, step: DenseStep, embeds: torch.Tensor, positions: torch.Tensor) -> None:
        self._prefix, self._step = prefix, step
        self._decoder = prefix._decoder
        self._num_other = len(step.other_rows)
        self._other = step.other_rows.to(embeds.device)
        self._batch_positions = positions
        self._rows = DenseRows.of(step)
        self._hidden, self._positions = self._gather(embeds, positions)
        self._residual: torch.Tensor | None = None
        self._kept_kv: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._scratch = prefix.scratch(step)
        self._scratch.lay_out(self._rows.lengths)
        self._leading_rows = self._rows.leading()
        self._leading_batch_rows = step.leading_batch_rows.to(embeds.device)
        self._importance_by_layer: dict[VideoRows, dict[int, torch.Tensor]] = {}
        self._schedule = _pruning_schedule(step, len(self._decoder.layers))

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
        last = max(self._schedule)
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
        if index in self._schedule:
            self._drop(index, attention, q[self._num_other :], k[self._num_other :])

    def _attend(self, attention: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attention of other rows through vLLM's paged cache, of dense rows through the scratch cache."""
        n, dim = self._num_other, attention.head_dim
        output = torch.empty_like(q)
        if n:
            output[:n] = attention.attn(*(self._to_batch(x) for x in (q, k, v)))[self._other]
        key, value = (x[n:].unflatten(1, (attention.num_kv_heads, dim)).contiguous() for x in (k, v))
        if not n:
            self._write_slots(attention.attn, key[self._leading()], value[self._leading()], self._leading_batch_rows)
        query = q[n:].unflatten(1, (attention.num_heads, dim)).contiguous()
        output[n:] = self._scratch.attend(attention.attn, query, key, value)
        self._kept_kv.append((key, value, self._rows.alive))
        return output

    def _to_batch(self, rows: torch.Tensor) -> torch.Tensor:
        """Other rows and leading rows at their places in the batch, zeros elsewhere (these slots are written later)."""
        batch = rows.new_zeros(self._step.num_batch_rows, rows.shape[1])
        batch[self._other] = rows[: self._num_other]
        batch[self._leading_batch_rows] = rows[self._num_other + self._leading()]
        return batch

    def _leading(self) -> torch.Tensor:
        """The dense rows before the first video of each request, as numbered now.

        Their blocks may already serve other requests of this step as a cached prefix, so every layer writes their keys
        and values before it attends.
        """
        return torch.searchsorted(self._rows.alive, self._leading_rows).to(self._hidden.device)

    def _drop(self, index: int, attention: Any, q: torch.Tensor, k: torch.Tensor) -> None:
        """Chooses tokens of the videos for which `index` is a pruning layer, and drops the others' rows."""
        assert self._residual is not None
        keep = torch.ones(len(self._rows.alive), dtype=torch.bool)
        query = q.unflatten(1, (attention.num_heads, attention.head_dim))
        key = k.unflatten(1, (attention.num_kv_heads, attention.head_dim))
        for request, origin, start, end in self._rows.requests():
            chosen = [(v, self._schedule[index][v]) for v in request.videos if v in self._schedule[index]]
            if not chosen:
                continue
            keys = torch.cat((self._prefix.context_keys(index, request), key[start:end]))
            for rows, count in chosen:
                first, last = self._rows.video_range(rows, origin)
                importance = self._importance(rows, request, origin, start, query, keys, first, last, attention)
                self._importance_by_layer.setdefault(rows, {})[index] = importance
                left = (self._rows.alive[first:last] - origin - rows.start).to(importance.device)
                part = slice(self._num_other + first, self._num_other + last)
                hidden = self._hidden[part] + self._residual[part]
                keep[first:last] = False
                keep[first + choose_tokens(rows.video, left, importance, hidden, count).cpu()] = True
        self._keep_rows(keep.nonzero().squeeze(1))

    def _importance(
        self,
        rows: VideoRows,
        request: DenseRequest,
        origin: int,
        start: int,
        query: torch.Tensor,
        keys: torch.Tensor,
        first: int,
        last: int,
        attention: Any,
    ) -> torch.Tensor:
        """Importance [last - first] of a video's rows."""
        question = torch.searchsorted(self._rows.alive, origin + rows.question).to(query.device)
        return measure_importance(
            query[question],
            question - start + request.context + 1,
            keys,
            torch.arange(first - start, last - start, device=query.device) + request.context,
            attention.scaling,
            rows.video.info.config,
        )

    def _keep_rows(self, kept: torch.Tensor) -> None:
        """Goes on with other rows and the dense rows `kept`."""
        assert self._residual is not None
        index = torch.cat((torch.arange(self._num_other), self._num_other + kept)).to(self._hidden.device)
        self._hidden, self._residual = self._hidden[index], self._residual[index]
        self._positions = self._positions[:, index]
        self._rows = self._rows.select(kept)
        self._scratch.lay_out(self._rows.lengths)

    def _return_to_batch(self) -> None:
        """Stage 3: kept rows to their batch rows, their keys and values to the paged cache."""
        assert self._residual is not None
        rows = torch.cat((self._step.other_rows, self._step.dense_batch_rows)).to(self._hidden.device)
        self._write_cache(self._step.dense_batch_rows.to(self._hidden.device))
        order = torch.empty_like(rows)
        order[rows] = torch.arange(len(rows), device=rows.device)
        self._hidden, self._residual = self._hidden[order], self._residual[order]
        positions = self._batch_positions.clone()
        positions[:, rows] = self._positions
        self._positions = positions

    def outcome(self, rows: VideoRows) -> VideoOutcome:
        """What became of a video, after `run`."""
        _request, origin, _, _ = next(item for item in self._rows.requests() if rows in item[0].videos)
        first, last = self._rows.video_range(rows, origin)
        kept = self._rows.alive[first:last] - origin - rows.start
        positions = rows.video.positions[:, kept.to(rows.video.positions.device)]
        return VideoOutcome(rows.video.info.trace, kept, positions, self._importance_by_layer[rows])

    def _write_cache(self, batch_rows: torch.Tensor) -> None:
        for attention, (key, value, alive) in zip(self._prefix._attention, self._kept_kv, strict=False):
            kept = torch.searchsorted(alive, self._rows.alive).to(key.device)
            self._write_slots(attention, key[kept], value[kept], batch_rows)

    def _write_slots(self, attention: Any, key: torch.Tensor, value: torch.Tensor, batch_rows: torch.Tensor) -> None:
        """Writes keys and values [n, G, D] into the paged cache, at the slots of `batch_rows` [n]."""
        slots = get_forward_context().slot_mapping[attention.layer_name][batch_rows]
        attention.impl.do_kv_cache_update(attention, key, value, attention.kv_cache, slots)


def _pruning_schedule(step: DenseStep, depth: int) -> dict[int, dict[VideoRows, int]]:
    """For every pruning layer, which videos it prunes and to how many tokens."""
    schedule: dict[int, dict[VideoRows, int]] = {}
    for request in step.requests:
        for rows in request.videos:
            info = rows.video.info
            for layer, count in zip(info.config.resolved_layers(depth), info.counts.layers, strict=True):
                schedule.setdefault(layer, {})[rows] = count
    return schedule
