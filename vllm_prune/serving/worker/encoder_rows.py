"""What a video becomes in vLLM's encoder cache: merged, dropped where no question has a say, and packed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from vllm_prune.layout import MediumLayout, cell_slots
from vllm_prune.serving.wire.notes import StepRecorder
from vllm_prune.serving.wire.request_spec import VideoSpec
from vllm_prune.serving.worker import carrier
from vllm_prune.serving.worker.encoder_attention import EncoderAttention
from vllm_prune.serving.worker.failures import Selection, agree_on_failures, select_tokens
from vllm_prune.serving.worker.medium_info import MediumInfo, MediumTable
from vllm_prune.serving.worker.query_free import over_all_cells, place_tokens, temporal_segments
from vllm_prune.serving.worker.rank_check import check_same_on_ranks
from vllm_prune.serving.worker.trace import TraceWriter, VideoOutcome, VideoTrace
from vllm_prune.serving.worker.upload import upload


@dataclass(frozen=True, eq=False)
class SelectedVideo:
    """A video between selection and packing, without its features before selection."""

    info: MediumInfo
    selection: Selection | str
    """Or why there is none, on this rank."""
    anchors: torch.Tensor
    """The cell [N1] of the grid whose position each token takes; none after a failure."""
    pinned: torch.Tensor
    """Rows that stay, [S, W]."""
    trace: VideoTrace | None

    @property
    def failure(self) -> str:
        """Why it cannot be pruned, on this rank; "" if it can."""
        return self.selection if isinstance(self.selection, str) else ""


Selected = SelectedVideo | torch.Tensor
"""The encoder's own rows where everything is kept."""


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

    def select(
        self, features: torch.Tensor, spec: VideoSpec, cells: torch.Tensor | None, notes: StepRecorder
    ) -> SelectedVideo | torch.Tensor:
        """Merges and drops tokens of one video.

        Args:
            features: From the vision encoder, [M, W], rows of its own that stay included; W > C where later layers get
                features, too.
            spec: What the processor decided.
            cells: Which cells of the grid were encoded, [M] int64; None: all.
            notes: Where the time that it takes is noted.

        Returns:
            For `pack`; the features where everything is kept.
        """
        counts, layout = spec.counts, spec.layout
        attention = self.attention.take(counts.encoded)
        if spec.keeps_all:
            return features
        begin = time.perf_counter()
        features, pinned = self._split(features, layout)
        tokens = place_tokens(features, layout.grid, cells)
        renumbered = spec.prompt_layout if spec.renumbered else None
        info = MediumInfo(layout, counts, spec.config.to_json(), turn=spec.turn, renumbered=renumbered)
        with notes.merging(features.device):
            selection = select_tokens(tokens, spec.config, counts, self._width, attention)
        if isinstance(selection, str):
            return SelectedVideo(info, selection, features.new_empty(0, dtype=torch.long), pinned, None)
        assignment, trace = selection[1], None
        if self._trace is not None:
            with gpu_sync_allowed():
                segments = temporal_segments(tokens, spec.config, self._width)
                whole = assignment if cells is None else over_all_cells(assignment, cells, layout.grid)
            seconds = time.perf_counter() - begin
            trace = VideoTrace(layout.grid, counts, whole, seconds, info.config_json, segments, spec.trace_key)
        anchors = assignment.anchor if cells is None else cells[assignment.anchor]
        return SelectedVideo(info, selection, anchors, pinned, trace)

    def pack(self, videos: Sequence[SelectedVideo | torch.Tensor]) -> list[torch.Tensor]:
        """Rows of all videos of one call of the encoder, whose failures the ranks tell each other at once.

        Returns:
            For each, what `select` returned where everything is kept, else [K + S, ...] as `carrier.pack` makes them.
        """
        selected = [video for video in videos if isinstance(video, SelectedVideo)]
        rows = map(self._rows, selected, agree_on_failures([video.failure for video in selected]))
        return [next(rows) if isinstance(video, SelectedVideo) else video for video in videos]

    def _rows(self, video: SelectedVideo, failure: str) -> torch.Tensor:
        info = video.info
        if failure or isinstance(video.selection, str):
            return self._failed(video.pinned, dataclasses.replace(info, failure=failure))
        check_same_on_ranks(video.anchors, "stage 1 of a video of %d x %d x %d tokens", *info.layout.grid)
        if self._trace is not None and video.trace is not None:
            with gpu_sync_allowed():
                info = _begin_trace(self._trace, info, video.trace)
        entering, _, groups = video.selection
        return self._pack(entering.features, video.pinned, video.anchors, groups, info)

    def _split(self, features: torch.Tensor, layout: MediumLayout) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of cells [M, W], and of rows that stay [S, W]; text is embedded, and zero for later layers."""
        if layout.encoder_pins:
            is_pinned = layout.is_pinned()
            others, pins = (~is_pinned).nonzero()[0], is_pinned.nonzero()[0]
            pinned = features[upload(torch.from_numpy(pins), features.device)]
            first, last = int(others[0]), int(others[-1]) + 1
            if last - first == len(others):  # one piece of memory, as a video's are
                return features[first:last], pinned
            return features[upload(torch.from_numpy(others), features.device)], pinned
        pinned = features.new_zeros(layout.num_pinned, features.shape[1])
        if layout.text:
            ids = upload(torch.tensor(layout.text_ids()), features.device)
            pinned[:, : self._width] = self._embed_text(ids).to(features.dtype)
        return features, pinned

    def _pack(
        self, features: torch.Tensor, pinned: torch.Tensor, cells: torch.Tensor, groups: torch.Tensor, info: MediumInfo
    ) -> torch.Tensor:
        features, slots, groups = _join(features, pinned, cells, groups, info.layout)
        return self.media.attach(info, lambda number: carrier.pack(features, slots, groups, info.counts.rows, number))

    def _failed(self, pinned: torch.Tensor, info: MediumInfo) -> torch.Tensor:
        """Rows of a video that could not be pruned: zeros, at the places of its first cells."""
        count = info.counts.kept
        cells = torch.arange(count, device=pinned.device)
        return self._pack(pinned.new_zeros(count, pinned.shape[1]), pinned, cells, torch.zeros_like(cells), info)


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
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    joined = features.new_empty(len(order), features.shape[1])
    joined[place[: len(features)]], joined[place[len(features) :]] = features, pinned
    return joined, slots, groups[order]


def _begin_trace(writer: TraceWriter, info: MediumInfo, traced: VideoTrace) -> MediumInfo:
    """Writes what was done to a video; where the question has a say, `info` keeps it until that is known."""
    if info.query_aware:
        return dataclasses.replace(info, trace=traced)
    slots = upload(torch.from_numpy(cell_slots(info.layout)), traced.assignment.anchor.device)
    offsets = info.offsets(slots[traced.assignment.anchor])
    writer.write([], [VideoOutcome(traced, torch.arange(len(offsets)), offsets.T)], 0.0)
    return info
