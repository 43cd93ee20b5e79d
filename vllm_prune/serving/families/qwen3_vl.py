"""Qwen3-VL, dense and with experts: a timestamp before each step of a video, interleaved M-RoPE, deepstack."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl_moe import Qwen3VLMoeForConditionalGeneration, Qwen3VLMoeProcessingInfo
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_prune.layout import MediumLayout
from vllm_prune.serving.api.processor import PruningProcessorMixin
from vllm_prune.serving.worker.dense.decoder_view import DecoderView, DeepstackView
from vllm_prune.serving.worker.patch_media import PatchMediaMixin

_TIMESTAMP = re.compile(r"<([\d.]+) seconds>")


class PruneQwen3VLProcessor(PruningProcessorMixin, Qwen3VLMultiModalProcessor):
    """Timestamps and the marks around each step are rows that nobody may drop."""

    fewest_frames = 2

    def layout(self, data: Any, index: int) -> MediumLayout:
        tokenizer, config = self.info.get_tokenizer(), self.info.get_hf_config()
        begin, end = (config.vision_start_token_id,), (config.vision_end_token_id,)
        # Each on its own, as `get_video_repl` of vLLM's processor does: their tokens never join what is beside them.
        times = [
            tuple(tokenizer.encode(f"<{float(seconds):.1f} seconds>", add_special_tokens=False))
            for seconds in data["timestamps"][index]
        ]
        text = [times[0] + begin, *(end + time + begin for time in times[1:]), end]
        return MediumLayout(self.grid(data, index), tuple(text), rope="per_step")

    def step_seconds(self, layout: MediumLayout) -> Sequence[float] | None:
        """As the timestamps say, to a tenth."""
        found = [_TIMESTAMP.search(self.info.get_tokenizer().decode(run)) for run in layout.text[:-1]]
        return [float(match[1]) for match in found if match] if all(found) else None


class Qwen3VLMediaMixin(PatchMediaMixin):
    """The encoder's rows hold what the decoder's first layers get, beside the embeddings, where there is deepstack."""

    visual: Any
    use_deepstack: bool
    deepstack_num_level: int

    def init_pruning(self, vllm_config: VllmConfig) -> None:
        self.levels = self.deepstack_num_level if self.use_deepstack else 0
        super().init_pruning(vllm_config)

    def decoder_view(self) -> DecoderView:
        return DeepstackView(self)

    def encode_cells(self, patches: torch.Tensor, grid_thw: tuple[int, int, int], cells: torch.Tensor) -> torch.Tensor:
        encoder = self.visual
        t, h, w = grid_thw
        lengths = (
            torch.bincount(cells // (h * w // encoder.spatial_merge_unit), minlength=t) * encoder.spatial_merge_unit
        )
        frames = [[1, 1, length] for length in lengths.tolist() if length]
        metadata = type(encoder).prepare_encoder_metadata(_PartialGrid(encoder, grid_thw, cells), frames)
        return encoder(patches, grid_thw=None, encoder_metadata=metadata)


class _PartialGrid:
    """Stands in for the encoder where it lays out frames, each as long as it has patches that are encoded.

    `Qwen3_VisionTransformer.prepare_encoder_metadata` takes lengths of frames from the grids it is given, and asks
    itself for what belongs to the places in them; this answers for the places that are there.
    """

    def __init__(self, encoder: Any, grid_thw: tuple[int, int, int], cells: torch.Tensor) -> None:
        unit = encoder.spatial_merge_unit
        self._encoder, self._grids = encoder, [list(grid_thw)]
        self._patches = (cells[:, None] * unit + torch.arange(unit)).flatten().to(encoder.device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def fast_pos_embed_interpolate(self, _: Any) -> torch.Tensor:
        """Position embeddings [n, hidden]."""
        return self._encoder.fast_pos_embed_interpolate(self._grids)[self._patches]

    def rot_pos_emb(self, _: Any) -> tuple[torch.Tensor, ...]:
        """Rotary factors, cosine and sine."""
        return tuple(factors[self._patches] for factors in self._encoder.rot_pos_emb(self._grids))


@MULTIMODAL_REGISTRY.register_processor(
    PruneQwen3VLProcessor, info=Qwen3VLProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class PruneQwen3VLForConditionalGeneration(Qwen3VLMediaMixin, Qwen3VLForConditionalGeneration):
    """Dense."""


@MULTIMODAL_REGISTRY.register_processor(
    PruneQwen3VLProcessor, info=Qwen3VLMoeProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class PruneQwen3VLMoeForConditionalGeneration(Qwen3VLMediaMixin, Qwen3VLMoeForConditionalGeneration):
    """With experts."""
