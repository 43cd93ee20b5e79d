"""The model side of pruning: merges and drops after the vision encoder, keeps positions exact, runs dense prefixes.

Runs in every worker. Put `PruningModelMixin` before a vLLM model class; what it needs of that class are the methods of
vLLM's multimodal interfaces plus the attributes annotated below.

The way of a video: `embed_multimodal` -> `prune_video`, `pack_videos` -> vLLM's encoder cache ->
`recompute_mrope_positions` (once for every request and step) -> `embed_input_ids` (once a step) -> `forward`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from vllm_prune.hook import Hooked, hook
from vllm_prune.layout import MediumLayout
from vllm_prune.serving.wire.clock import Stopwatch
from vllm_prune.serving.wire.notes import StepRecorder
from vllm_prune.serving.wire.request_spec import VideoSpec, is_renumbered
from vllm_prune.serving.wire.settings import read_settings, read_undivided_decoder
from vllm_prune.serving.worker import carrier
from vllm_prune.serving.worker.ask_first import AskFirst
from vllm_prune.serving.worker.dense.decoder_view import DecoderView
from vllm_prune.serving.worker.dense.long_prefixes import LongPrefixes
from vllm_prune.serving.worker.dense.prefix import DensePrefix
from vllm_prune.serving.worker.dense.step import DenseVideo, plan_step
from vllm_prune.serving.worker.draft_rows import DraftRows
from vllm_prune.serving.worker.embedding import base_embedding
from vllm_prune.serving.worker.encoder_rows import EncoderRows, Selected
from vllm_prune.serving.worker.medium_info import MediumInfo
from vllm_prune.serving.worker.positions import (
    Medium,
    fill_rows,
    prompt_delta,
    prompt_positions,
    pruned_rows_from,
    remember,
)
from vllm_prune.serving.worker.selectors import Selectors
from vllm_prune.serving.worker.trace import TraceWriter
from vllm_prune.serving.worker.upload import upload

_PROMPT_EMBEDS = "prompt_embeds"
"""What vLLM calls text that a client sends as embeddings; like media it is put in beside the embedded token ids."""

Gathered = DenseVideo | Stopwatch | str | None
"""What is left to choose of a medium; how long the choice took; why it failed; or nothing of it."""


class PruningModelMixin(Hooked):
    """Pruning on top of a model whose media are grids of tokens with M-RoPE positions."""

    language_model: Any
    """vLLM's decoder-only model."""
    levels: int = 0
    """Of the first layers, how many get features of a medium, in further columns of the encoder's rows."""

    def init_pruning(self, vllm_config: VllmConfig) -> None:
        """Call at the end of the variant's constructor."""
        width = vllm_config.model_config.get_inputs_embeds_size()
        self._row_width = (1 + self.levels) * width
        settings = read_settings(vllm_config.model_config.hf_config)
        folder = settings.trace if get_tensor_model_parallel_rank() == 0 else None
        self._trace = trace = None if folder is None else TraceWriter(folder, settings.trace_limits)
        embed_text = base_embedding(self.language_model)
        self._encoder_rows = rows = EncoderRows(trace, width, embed_text)
        self._selectors = selectors = Selectors(vllm_config, embed_text)
        self._ask_first = AskFirst(vllm_config, rows.media, selectors.by_place, self._row_width, embed_text, trace)
        self.draft_rows = DraftRows(rows.media, self._ask_first, self._row_width, width)
        self._dense_prefix: DensePrefix | None = None
        self.long_prefixes: LongPrefixes | None = None
        if settings.may_query and not read_undivided_decoder(vllm_config.model_config.hf_config):
            self._dense_prefix = DensePrefix(vllm_config, self.decoder_view(), selectors.by_place, trace)
            self._dense_prefix.check_supported()
            self.long_prefixes = self._dense_prefix.long
        self._gathered: list[Gathered] = []  # of every medium with rows in the step being prepared
        self._slots: list[torch.Tensor | None] = []
        self.notes = StepRecorder()
        self._dense_videos: list[DenseVideo] = []

    @hook
    def load_weights(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's own way; then learned selectors are held against the embeddings that were loaded."""
        loaded = super().load_weights(*args, **kwargs)  # type: ignore[misc]
        self._selectors.check_embeddings()
        return loaded

    def decoder_view(self) -> DecoderView:
        """The decoder, as a dense prefix uses it."""
        return DecoderView(self.language_model)

    def take_notes(self) -> StepRecorder:
        """What was noted since the last call."""
        notes, self.notes = self.notes, StepRecorder()
        if self._trace is not None:
            notes.lost_traces = self._trace.take_lost()
        return notes

    @property
    def waits_for_dense_step(self) -> bool:
        """Whether the step being prepared has videos whose tokens only `forward` can choose."""
        return bool(self._dense_videos)

    def prune_video(self, features: torch.Tensor, spec: VideoSpec, cells: torch.Tensor | None = None) -> Selected:
        """What is left of one video; see `EncoderRows.select`."""
        return self._encoder_rows.select(features, spec, cells, self.notes)

    def pack_videos(self, videos: Sequence[Selected]) -> list[torch.Tensor]:
        """Rows for vLLM's encoder cache of all videos of one call, as `prune_video` left them."""
        return self._encoder_rows.pack(videos)

    @abstractmethod
    def layout_of(self, feature: MultiModalFeatureSpec) -> MediumLayout:
        """A medium of a prompt, unpruned."""

    @hook
    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[MultiModalFeatureSpec]
    ) -> tuple[torch.Tensor, int]:
        """Positions of a prompt before its media are encoded; see `positions.py`."""
        features = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        media = [
            Medium(f.mm_position.offset, f.mm_position.length, self.layout_of(f), is_renumbered(f)) for f in features
        ]
        return remember(*prompt_positions(len(input_tokens), media))

    @hook
    def recompute_mrope_positions(
        self,
        input_ids: list[int] | torch.Tensor,
        multimodal_embeddings: Sequence[torch.Tensor],
        mrope_positions: torch.Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[torch.Tensor], torch.Tensor, int]:
        """Unpacks the rows of this step and gives those that stay their positions.

        The rows of a step are consecutive rows of the prompt's media from `num_computed_tokens` on, wherever chunks or
        prefix-cache hits begin. Which rows of the prompt those are, its positions tell: its token ids cannot, since a
        user may type the very token that vLLM puts in for a medium.

        Args:
            input_ids: The whole prompt, [L].
            multimodal_embeddings: For every medium with placeholders in this step, its rows in this step.
            mrope_positions: Of the whole prompt, [3, L]; changed in place.
            num_computed_tokens: Where this step starts.
        """
        stripped: list[torch.Tensor] = []
        text_goes_on = 0
        # The only wait for the device, and one that has to stay: the V2 runner writes the delta that this returns to
        # pinned memory which the step before may still be reading, and it is through that step after this.
        pruned = [rows for rows in multimodal_embeddings if rows.shape[1] > self._row_width]
        with gpu_sync_allowed():
            parts, known, prompt = carrier.read_parts(pruned, mrope_positions, input_ids)
        index = pruned_rows_from(mrope_positions, known, num_computed_tokens)
        for rows in multimodal_embeddings:
            dense: Gathered = None
            slots: torch.Tensor | None = None
            if rows.shape[1] > self._row_width:
                here, index = index[: len(rows)], index[len(rows) :]
                part = parts.pop(0)
                info = self._encoder_rows.media[part.info]
                # Rows that have their positions already (V1) are of a prompt whose delta is known.
                start = -int(known[0, here[0]]) - 1
                text_goes_on = start + info.extent
                if info.asks_first:
                    rows, slots, dense = self._ask_first.take(part, len(rows), prompt, int(here[0]), start)
                else:
                    rows, slots, dense = self._unpack(rows, part.row, info, start, prompt)
                if not info.chooses_inside:
                    with gpu_sync_allowed():  # the V1 runner keeps positions on the CPU
                        offsets = info.row_offsets(slots, part.row).to(mrope_positions.device)
                    fill_rows(mrope_positions, upload(here, offsets.device), offsets)
            stripped.append(rows)
            self._gathered.append(dense)
            self._slots.append(slots)
        return stripped, mrope_positions, prompt_delta(mrope_positions, known, text_goes_on)

    def _unpack(
        self, rows: torch.Tensor, first: int, info: MediumInfo, start: int, prompt: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, Gathered]:
        """Of rows from `first` on: features [n, W], slots [n], what is left to choose from (or what went wrong)."""
        features, slots, groups = carrier.unpack(rows, self._row_width)
        if not info.chooses_inside:
            return features, slots, info.failure or None
        # Which tokens these rows will hold is known after the pruning layers only, and only then are their positions.
        n = max(info.counts.carried_rows - len(features) // len(rows) * first, 0)
        part = len(rows) if len(rows) < info.counts.rows else None
        video = DenseVideo(features[:n], slots[:n], groups[:n], start, info, prompt, num_rows=part)
        return features[: len(rows)], slots[: len(rows)], video

    @hook
    def embed_input_ids(
        self,
        input_ids: torch.Tensor,
        multimodal_embeddings: Any = None,
        *,
        is_multimodal: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Embeddings of the step's rows; notes which rows belong to videos whose tokens are yet to be chosen."""
        gathered, self._gathered, self._slots, self._dense_videos = self._gathered, [], [], []
        if any(gathered) and is_multimodal is not None:
            is_multimodal = is_multimodal.to("cpu")
            self._is_media_row = is_multimodal.clone()
            rows = is_multimodal.nonzero().squeeze(1).tolist()
            for video, embeddings in zip(gathered, multimodal_embeddings, strict=True):
                if getattr(embeddings, "modality", None) == _PROMPT_EMBEDS:
                    self._is_media_row[rows[: len(embeddings)]] = False
                if isinstance(video, str):
                    self.notes.failed(rows[0], video)
                elif isinstance(video, Stopwatch):
                    self.notes.chosen(rows[0], video)
                elif video is not None:
                    self._dense_videos.append(video.at_row(rows[0]))
                rows = rows[len(embeddings) :]
        return super().embed_input_ids(  # type: ignore[misc]
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal, **kwargs
        )

    @hook
    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """vLLM's own forward, unless the step prefills a video whose tokens the question chooses."""
        videos, self._dense_videos = self._dense_videos, []
        if videos and inputs_embeds is not None:
            prefix: Any = self._dense_prefix  # no video's tokens wait for a choice elsewhere
            step = plan_step(videos, self._is_media_row, prefix.batch(), len(inputs_embeds))
            with self.notes.dense_prefix(inputs_embeds.device, lambda: prefix.attention_shapes):
                return prefix.run(step, inputs_embeds, positions)
        # Held by vLLM's dummy step, by which it finds out how much its paged cache may have.
        reserved = None if self._dense_prefix is None else self._dense_prefix.reserve_while_profiling(inputs_embeds)
        hidden = super().forward(  # type: ignore[misc]
            input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds, **kwargs
        )
        del reserved
        return hidden
