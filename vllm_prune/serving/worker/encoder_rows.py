"""What a video becomes in vLLM's encoder cache: merged, dropped where no question has a say, and packed."""

from __future__ import annotations

import dataclasses
import time

import torch

from vllm_prune.serving.wire.notes import StepRecorder
from vllm_prune.serving.wire.request_spec import VideoSpec
from vllm_prune.serving.worker import carrier
from vllm_prune.serving.worker.failures import select_tokens
from vllm_prune.serving.worker.medium_info import MediumInfo, MediumTable
from vllm_prune.serving.worker.query_free import over_all_cells, place_tokens, temporal_segments
from vllm_prune.serving.worker.rank_check import check_same_on_ranks
from vllm_prune.serving.worker.trace import TraceWriter, VideoOutcome, VideoTrace


class EncoderRows:
    """Makes the rows of videos for vLLM's encoder cache, and remembers the facts that their rows refer to."""

    def __init__(self, trace: TraceWriter | None) -> None:
        self.media = MediumTable()
        self._trace = trace

    def make(
        self,
        features: torch.Tensor,
        grid: tuple[int, int, int],
        t_factor: float,
        spec: VideoSpec,
        cells: torch.Tensor | None,
        notes: StepRecorder,
    ) -> torch.Tensor:
        """Rows of one video.

        Args:
            features: From the vision encoder, [M, C].
            grid: (t, h, w) in merged tokens, t * h * w = N.
            t_factor: Temporal positions per step of the grid.
            spec: What the processor decided.
            cells: Which cells of the grid were encoded, [M] int64; None: all.
            notes: Where the time that it takes is noted.

        Returns:
            [N, C] where everything is kept, else [K, ...] as `carrier.pack` makes them.
        """
        counts = spec.counts
        if counts.kept == counts.total:
            return features
        begin = time.perf_counter()
        tokens = place_tokens(features, grid, cells)
        with notes.merging(features.device):
            selection = select_tokens(tokens, spec.config, counts)
        if isinstance(selection, str):
            info = MediumInfo(grid, t_factor, counts, spec.config.to_json(), failure=selection)
            return self._failed(features, info)
        entering, assignment, groups = selection
        anchors = assignment.anchor if cells is None else cells[assignment.anchor]
        check_same_on_ranks(anchors, "stage 1 of a video of %d x %d x %d tokens", *grid)
        info = MediumInfo(grid, t_factor, counts, spec.config.to_json())
        if self._trace is not None:
            segments = temporal_segments(tokens, spec.config)
            whole = assignment if cells is None else over_all_cells(assignment, cells, grid)
            seconds = time.perf_counter() - begin
            traced = VideoTrace(grid, counts, whole, seconds, info.config_json, segments, spec.trace_key)
            info = _begin_trace(self._trace, info, traced)
        return self._pack(entering.features, anchors, groups, info)

    def _pack(
        self, features: torch.Tensor, cells: torch.Tensor, groups: torch.Tensor, info: MediumInfo
    ) -> torch.Tensor:
        count = info.counts.kept
        return self.media.attach(info, lambda number: carrier.pack(features, cells, groups, count, number))

    def _failed(self, features: torch.Tensor, info: MediumInfo) -> torch.Tensor:
        """Rows of a video that could not be pruned: zeros, at the places of its first cells."""
        count = info.counts.kept
        cells = torch.arange(count, device=features.device)
        return self._pack(torch.zeros_like(features[:count]), cells, torch.zeros_like(cells), info)


def _begin_trace(writer: TraceWriter, info: MediumInfo, traced: VideoTrace) -> MediumInfo:
    """Writes what was done to a video; where the question has a say, `info` keeps it until that is known."""
    if info.query_aware:
        return dataclasses.replace(info, trace=traced)
    offsets = info.offsets(traced.assignment.anchor)
    writer.write([], [VideoOutcome(traced, torch.arange(len(offsets)), offsets.T)], 0.0)
    return info
