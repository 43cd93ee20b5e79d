"""What a video becomes in vLLM's encoder cache: merged, dropped where no question has a say, and packed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch

from vllm_prune.layout import MediumLayout, cell_slots
from vllm_prune.serving.wire.notes import StepRecorder
from vllm_prune.serving.wire.request_spec import VideoSpec
from vllm_prune.serving.worker import carrier
from vllm_prune.serving.worker.encoder_attention import EncoderAttention
from vllm_prune.serving.worker.failures import select_tokens
from vllm_prune.serving.worker.medium_info import MediumInfo, MediumTable
from vllm_prune.serving.worker.query_free import over_all_cells, place_tokens, temporal_segments
from vllm_prune.serving.worker.rank_check import check_same_on_ranks
from vllm_prune.serving.worker.trace import TraceWriter, VideoOutcome, VideoTrace
from vllm_prune.serving.worker.upload import upload


class EncoderRows:
    """Makes the rows of videos for vLLM's encoder cache, and remembers the facts that their rows refer to."""

    def __init__(
        self, trace: TraceWriter | None, width: int, embed_text: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        """`width`: C of the first level, by which is decided; `embed_text`: token ids [S] to embeddings [S, C]."""
        self.media = MediumTable()
        self.attention = EncoderAttention()
        """What is read off the encoder while it runs, for methods that look at it."""
        self._trace = trace
        self._width = width
        self._embed_text = embed_text

    def make(
        self, features: torch.Tensor, spec: VideoSpec, cells: torch.Tensor | None, notes: StepRecorder
    ) -> torch.Tensor:
        """Rows of one video.

        Args:
            features: From the vision encoder, [M, W], rows of its own that stay included; W > C where later layers get
                features, too.
            spec: What the processor decided.
            cells: Which cells of the grid were encoded, [M] int64; None: all.
            notes: Where the time that it takes is noted.

        Returns:
            The features where everything is kept, else [K + S, ...] as `carrier.pack` makes them.
        """
        counts, layout = spec.counts, spec.layout
        attention = self.attention.take(counts.encoded)
        if spec.keeps_all:
            return features
        begin = time.perf_counter()
        features, pinned = self._split(features, layout)
        tokens = place_tokens(features, layout.grid, cells)
        with notes.merging(features.device):
            selection = select_tokens(tokens, spec.config, counts, self._width, attention)
        info = MediumInfo(layout, counts, spec.config.to_json())
        if isinstance(selection, str):
            return self._failed(features, pinned, dataclasses.replace(info, failure=selection))
        entering, assignment, groups = selection
        anchors = assignment.anchor if cells is None else cells[assignment.anchor]
        check_same_on_ranks(anchors, "stage 1 of a video of %d x %d x %d tokens", *layout.grid)
        if self._trace is not None:
            segments = temporal_segments(tokens, spec.config, self._width)
            whole = assignment if cells is None else over_all_cells(assignment, cells, layout.grid)
            seconds = time.perf_counter() - begin
            traced = VideoTrace(layout.grid, counts, whole, seconds, info.config_json, segments, spec.trace_key)
            info = _begin_trace(self._trace, info, traced)
        return self._pack(entering.features, pinned, anchors, groups, info)

    def _split(self, features: torch.Tensor, layout: MediumLayout) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of cells [M, W], and of rows that stay [S, W]; text is embedded, and zero for later layers."""
        if layout.encoder_pins:
            pins = upload(torch.from_numpy(layout.is_pinned()), features.device)
            return features[~pins], features[pins]
        pinned = features.new_zeros(layout.num_pinned, features.shape[1])
        if layout.text:
            ids = upload(torch.tensor(layout.text_ids()), features.device)
            pinned[:, : self._width] = self._embed_text(ids).to(features.dtype)
        return features, pinned

    def _pack(
        self, features: torch.Tensor, pinned: torch.Tensor, cells: torch.Tensor, groups: torch.Tensor, info: MediumInfo
    ) -> torch.Tensor:
        count = info.counts.rows
        features, slots, groups = _join(features, pinned, cells, groups, info.layout)
        return self.media.attach(info, lambda number: carrier.pack(features, slots, groups, count, number))

    def _failed(self, features: torch.Tensor, pinned: torch.Tensor, info: MediumInfo) -> torch.Tensor:
        """Rows of a video that could not be pruned: zeros, at the places of its first cells."""
        count = info.counts.kept
        cells = torch.arange(count, device=features.device)
        return self._pack(torch.zeros_like(features[:count]), pinned, cells, torch.zeros_like(cells), info)


def _join(
    features: torch.Tensor, pinned: torch.Tensor, cells: torch.Tensor, groups: torch.Tensor, layout: MediumLayout
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features [n + S, W], slots and groups of n tokens at `cells` and of the rows that stay, in the medium's order."""
    if not layout.num_pinned:
        return features, cells, groups
    is_pinned = layout.is_pinned()
    of_cells, of_pins = (upload(torch.from_numpy(x.nonzero()[0]), cells.device) for x in (~is_pinned, is_pinned))
    slots, order = torch.cat((of_cells[cells], of_pins)).sort()
    groups = torch.cat((groups, groups.new_zeros(len(of_pins))))
    return torch.cat((features, pinned))[order], slots, groups[order]


def _begin_trace(writer: TraceWriter, info: MediumInfo, traced: VideoTrace) -> MediumInfo:
    """Writes what was done to a video; where the question has a say, `info` keeps it until that is known."""
    if info.query_aware:
        return dataclasses.replace(info, trace=traced)
    slots = upload(torch.from_numpy(cell_slots(info.layout)), traced.assignment.anchor.device)
    offsets = info.offsets(slots[traced.assignment.anchor])
    writer.write([], [VideoOutcome(traced, torch.arange(len(offsets)), offsets.T)], 0.0)
    return info
