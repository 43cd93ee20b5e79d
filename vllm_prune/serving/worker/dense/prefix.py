"""Dense prefixes: steps that prefill videos whose tokens the question chooses. `step_run.py` runs one of them."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context

from vllm_prune.config import PruneConfigError
from vllm_prune.serving.refusals import check_resolved, check_windows
from vllm_prune.serving.worker.dense.drop import RowDropper
from vllm_prune.serving.worker.dense.fused_layers import fused_layers, has_fused_kernels
from vllm_prune.serving.worker.dense.key_reader import KeyReader
from vllm_prune.serving.worker.dense.scratch import ScratchCache, make_metadata_builder
from vllm_prune.serving.worker.dense.step import Batch, DenseRequest, DenseStep
from vllm_prune.serving.worker.dense.step_run import StepRun
from vllm_prune.serving.worker.trace import TraceWriter

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

    def check_supported(self) -> None:
        """Raises for a configuration without dense prefixes, or a backend whose cache is not written on its own."""
        check_resolved(self._config)
        check_windows(self._attention)
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
        lens = metadata.seq_lens
        both = torch.cat((lens, metadata.query_start_loc.to(lens.dtype))).tolist()  # one wait for the device
        return Batch(both[len(lens) :], both[: len(lens)])

    def _metadata(self) -> Any:
        return get_forward_context().attn_metadata[self._attention[0].layer_name]

    def attention_shapes(self, step: DenseStep) -> dict[int, list[list[int]]]:
        """By the first batch row of every request: layer, heads, question rows and tokens of every choice."""
        heads = self._decoder.layers[0].self_attn.total_num_heads
        shapes: dict[int, list[list[int]]] = {}
        for request in step.requests:
            own = shapes.setdefault(request.batch_start, [])
            for rows in request.videos:
                counts = rows.video.info.counts
                layers = rows.video.info.config.resolved_layers(len(self._decoder.layers))
                for layer, count in zip(layers, (counts.entering, *counts.layers), strict=False):
                    own.append([layer, heads, len(rows.question), count])
        return shapes

    def run(self, step: DenseStep, inputs_embeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Hidden states [batch rows, C] of the step.

        Args:
            step: Its rows.
            inputs_embeds: [batch rows, C]; those of the videos to be pruned are not looked at.
            positions: [3, batch rows]; likewise.
        """
        begin = time.perf_counter()
        dropper = RowDropper(step, len(self._decoder.layers), self._context_keys)
        run = StepRun(self._decoder, step, dropper, self._scratch(step), inputs_embeds, positions)
        with fused_layers(self._decoder.layers) if has_fused_kernels() else contextlib.nullcontext():
            hidden = run.run()
        if self._trace is not None:
            for request in step.requests:
                outcomes = [run.outcome(rows) for rows in request.videos]
                self._trace.write(list(request.videos[0].video.prompt), outcomes, time.perf_counter() - begin)
        return hidden

    def _scratch(self, step: DenseStep) -> ScratchCache:
        """A scratch cache for `step`."""
        layer = self._attention[0]
        if self._builder is None:
            self._builder = make_metadata_builder(self._config, self._attention, layer.kv_cache.device)
        block_table = self._metadata().block_table
        tables = [block_table[request.index] for request in step.requests]
        contexts = [request.context for request in step.requests]
        return ScratchCache(self._builder, layer.kv_cache, self._block_size, contexts, tables)

    @property
    def _block_size(self) -> int:
        """Tokens of a block of the paged cache."""
        return self._builder.kv_cache_spec.block_size

    def _context_keys(self, layer: int, request: DenseRequest) -> torch.Tensor:
        """Keys [context, G, D] of what a request had computed before this step."""
        attention = self._attention[layer]
        if request.context == 0:
            return attention.kv_cache.new_empty(0, attention.num_kv_heads, attention.head_size)
        if self._reader is None:
            self._reader = KeyReader(attention, self._block_size)
        return self._reader.read(attention, self._metadata().block_table[request.index], request.context)
