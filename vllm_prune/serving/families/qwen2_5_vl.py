"""Qwen2.5-VL: M-RoPE with absolute time, contiguous videos, a vision encoder with windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_prune.layout import MediumLayout
from vllm_prune.serving.api.processor import PruningProcessorMixin
from vllm_prune.serving.worker.patch_media import PatchMediaMixin
from vllm_prune.serving.worker.upload import upload


class PruneQwen2_5_VLProcessor(PruningProcessorMixin, Qwen2_5_VLMultiModalProcessor):
    """Positions along time follow the seconds."""

    def layout(self, data: Any, index: int) -> MediumLayout:
        seconds = data.get("second_per_grid_ts")
        t_factor = (1.0 if seconds is None else float(seconds[index])) * self._positions_per_second
        return MediumLayout(self.grid(data, index), t_factor=t_factor)

    def step_seconds(self, layout: MediumLayout) -> Sequence[float] | None:
        """Steps are as far apart as their positions say."""
        return [step * layout.t_factor / self._positions_per_second for step in range(layout.grid[0])]

    @property
    def _positions_per_second(self) -> float:
        return float(getattr(self.info.get_hf_config().vision_config, "tokens_per_second", 1.0))


@MULTIMODAL_REGISTRY.register_processor(
    PruneQwen2_5_VLProcessor, info=Qwen2_5_VLProcessingInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class PruneQwen2_5_VLForConditionalGeneration(PatchMediaMixin, Qwen2_5_VLForConditionalGeneration):
    """Cells that are not encoded are left out of frames and windows."""

    def encode_cells(self, patches: torch.Tensor, grid_thw: tuple[int, int, int], cells: torch.Tensor) -> torch.Tensor:
        encoder = self.visual
        prepare = type(encoder).prepare_encoder_metadata
        metadata = prepare(_PartialGrid(encoder, cells), [list(grid_thw)], device=encoder.device)
        return encoder(patches, grid_thw=None, encoder_metadata=metadata)


class _PartialGrid:
    """Stands in for the encoder where it lays out a grid, and leaves out the cells that are not encoded.

    `Qwen2_5_VisionTransformer.prepare_encoder_metadata` asks itself for the layout of each grid (`get_rope_by_thw`) and
    makes everything else from the answer; this gives it another answer.
    """

    def __init__(self, encoder: Any, cells: torch.Tensor) -> None:
        self._encoder, self._cells = encoder, cells

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def get_rope_by_thw(self, t: int, h: int, w: int) -> tuple[torch.Tensor, ...]:
        """Rotary factors, order of cells in windows, ends of windows and lengths of frames, in patches."""
        cos, sin, order, window_ends, _ = self._encoder.get_rope_by_thw(t, h, w)
        unit = self._encoder.spatial_merge_unit
        number = torch.full((len(order),), -1, dtype=order.dtype)
        number[self._cells] = torch.arange(len(self._cells), dtype=order.dtype)
        there = number[order] >= 0
        before = torch.cat((torch.zeros(1, dtype=torch.int64), there.cumsum(0)))
        window_ends = (before[window_ends.long() // unit] * unit).to(torch.int32)
        frames = torch.arange(0, len(order) + 1, len(order) // t)
        lengths = (before[frames].diff() * unit).to(torch.int32)
        rows = upload(there.nonzero().squeeze(1), cos.device)
        return (
            cos.view(len(order), unit, -1)[rows].flatten(0, 1),
            sin.view(len(order), unit, -1)[rows].flatten(0, 1),
            number[order][there],
            torch.unique_consecutive(window_ends[window_ends > 0]),
            lengths[lengths > 0],
        )
