"""Dense prefixes: steps that prefill videos whose tokens the question chooses. `step_run.py` runs one of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.forward_context import get_forward_context
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from vllm_prune.config import PruneConfigError
from vllm_prune.selector import Selector
from vllm_prune.serving.refusals import check_resolved, check_windows
from vllm_prune.serving.wire.selector_file import Place
from vllm_prune.serving.wire.settings import read_settings, read_step_limits
from vllm_prune.serving.worker.dense.captured import CapturedLayers
from vllm_prune.serving.worker.dense.decoder_view import DecoderView
from vllm_prune.serving.worker.dense.dense_layers import DenseLayers, Workshop
from vllm_prune.serving.worker.dense.drop import RowDropper
from vllm_prune.serving.worker.dense.fused_layers import fused_layers, has_fused_kernels, rotary_embeddings
from vllm_prune.serving.worker.dense.layer_memory import inner_width
from vllm_prune.serving.worker.dense.long_prefixes import LongPrefixes
from vllm_prune.serving.worker.dense.paged_cache import PagedCache, step_metadata
from vllm_prune.serving.worker.dense.scratch import ScratchCaches
from vllm_prune.serving.worker.dense.state_rows import StateRows
from vllm_prune.serving.worker.dense.step import Batch, DenseRequest, DenseStep
from vllm_prune.serving.worker.dense.step_run import Entering, StepRun
from vllm_prune.serving.worker.trace import TraceWriter

SUPPORTED_BACKENDS = ("FLASH_ATTN", "TRITON_ATTN", "CPU_ATTN")
"""Backends that write keys and values apart from attention and name their metadata alike."""


class DensePrefix:
    """Dense prefixes for one decoder."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        decoder: DecoderView,
        selectors: Mapping[Place, Selector],
        trace: TraceWriter | None,
    ) -> None:
        self._config, self._selectors, self._trace = vllm_config, selectors, trace
        self._decoder = decoder
        self._paged = PagedCache(vllm_config)
        self._states = StateRows(vllm_config, decoder.states.values())
        self._rotary = rotary_embeddings(decoder.layers)
        self.captured: CapturedLayers | None = None
        """What else a model hands out of its next step, beside the last layer."""
        self.long = LongPrefixes(decoder, self._paged, self._states, selectors)
        """Those that stretch over several steps."""
        self.attention_shapes: dict[int, list[list[int]]] = {}
        """By the first batch row of every request of the last step: layer, heads, question rows and tokens of every
        choice by attention."""
        self.rows_at_once: int = vllm_config.scheduler_config.max_num_batched_tokens
        """Rows that a layer computes in one call, vLLM's own budget for it."""

    def check_supported(self) -> None:
        """Raises for a configuration without dense prefixes, or a backend whose cache is not written on its own."""
        check_resolved(self._config)
        check_windows(self._decoder.attention)
        for attention in self._decoder.attention.values():
            name = attention.get_attn_backend().get_name()
            if name not in SUPPORTED_BACKENDS:
                raise PruneConfigError(
                    f'attention backend {name}: method "attention" supports {", ".join(SUPPORTED_BACKENDS)}; choose '
                    f"one with --attention-backend, or a query-free method and --prune-override tighten"
                )

    def reserve_while_profiling(self, embeds: torch.Tensor | None) -> torch.Tensor | None:
        """Memory of as many dense rows as a step may have, if this is vLLM's largest dummy step.

        Args:
            embeds: What enters the step, [n, C].
        """
        if embeds is None or len(embeds) < self.rows_at_once or get_forward_context().attn_metadata is not None:
            return None
        return self.reserve_memory(read_step_limits(self._config.model_config.hf_config).dense_tokens or 0, embeds)

    def reserve_memory(self, num_rows: int, embeds: torch.Tensor) -> torch.Tensor:
        """What a step with `num_rows` dense rows takes beside the rows that vLLM schedules, in one allocation.

        Rows of the encoder cache, hidden states, keys and values of all of them, and what a layer takes while it runs
        over some (`rows_at_once`).
        Held during vLLM's memory profiling, it is what the paged cache leaves free for such a step.

        Args:
            num_rows: Dense rows.
            embeds: Any embeddings [n, C] of the model.
        """
        layers = self._most_dense_layers()
        kv_widths = [
            2 * attention.num_kv_heads * attention.head_size
            for index, attention in self._decoder.attention.items()
            if index < layers
        ]
        inner = max(inner_width(layer) for layer in self._decoder.layers[:layers])
        per_row = (7 + 2 * self._decoder.levels) * embeds.shape[1] + sum(kv_widths) + max(kv_widths)
        return embeds.new_empty(num_rows * per_row + min(num_rows, self.rows_at_once) * inner)

    def _most_dense_layers(self) -> int:
        """How many of the first layers a dense prefix may run."""
        settings = read_settings(self._config.model_config.hf_config)
        if settings.override == "any" or not settings.config.chooses_inside:
            return len(self._decoder.layers)
        return max(self._decoder.pruning_layers(settings.config)) + 1

    def batch(self) -> Batch:
        """What vLLM scheduled in the step under way."""
        metadata = step_metadata(next(iter(self._decoder.attention.values())))
        lens = metadata.seq_lens
        with gpu_sync_allowed():  # one wait for the device
            both = torch.cat((lens, metadata.query_start_loc.to(lens.dtype))).tolist()
        return Batch(both[len(lens) :], both[: len(lens)])

    def _shapes_of(self, step: DenseStep, finished: Iterable[DenseRequest]) -> dict[int, list[list[int]]]:
        ranks, attention = get_tensor_model_parallel_world_size(), self._decoder.attention
        shapes: dict[int, list[list[int]]] = {part.batch_start: [] for part in step.long}
        for request in finished:
            own = shapes.setdefault(request.batch_start, [])
            for rows in request.videos:
                counts = rows.video.info.counts
                if rows.video.info.config.needs_selector:
                    continue
                layers = self._decoder.pruning_layers(rows.video.info.config)
                for layer, count in zip(layers, (counts.entering, *counts.layers), strict=False):
                    own.append([layer, attention[layer].num_heads * ranks, len(rows.question), count])
        return shapes

    def run(self, step: DenseStep, inputs_embeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Hidden states [batch rows, C] of the step.

        Args:
            step: Its rows.
            inputs_embeds: [batch rows, C]; those of the videos to be pruned are not looked at.
            positions: [3, batch rows]; likewise.
        """
        begin = time.perf_counter()
        entering = Entering(inputs_embeds, positions, self._decoder.take_level_rows(len(inputs_embeds)))
        runs: list[tuple[DenseRequest, DenseLayers]] = []
        with fused_layers(self._rotary) if has_fused_kernels() else contextlib.nullcontext():
            hidden = self._run_batch(step, entering, runs)
            # Behind the batch, which leaves zeros in the slots of what it does not compute.
            for part in step.long:
                finish = self.long.run(part, entering, self.rows_at_once)
                if finish is not None:
                    hidden[part.batch_start : part.batch_end] = finish.run()[part.batch_start - part.batch_end :]
                    runs.append((replace(finish.request, batch_start=part.batch_start), finish))
        self.attention_shapes = self._shapes_of(step, (request for request, _ in runs))
        if self._trace is not None:
            for request, run in runs:
                with gpu_sync_allowed():
                    outcomes = [run.outcome(rows) for rows in request.videos]
                self._trace.write(request.videos[0].video.prompt, outcomes, time.perf_counter() - begin)
        return hidden

    def _run_batch(
        self, step: DenseStep, entering: Entering, runs: list[tuple[DenseRequest, DenseLayers]]
    ) -> torch.Tensor:
        """All but parts of long prefixes; adds to `runs` where requests were computed."""
        if step.long and not step.requests and not len(step.other_rows):
            return torch.zeros_like(entering.embeds)
        dropper = RowDropper(step, self._decoder, self._paged, self._selectors)
        scratch = ScratchCaches(self._paged, step.requests)
        workshop = Workshop(self._decoder, dropper, scratch, self._states, self.rows_at_once)
        run = StepRun(step, workshop, entering, self.captured)
        runs += [(request, run) for request in step.requests]
        return run.run()
