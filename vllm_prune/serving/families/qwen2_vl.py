"""Qwen2-VL: M-RoPE without absolute time, contiguous videos, a vision encoder that attends over whole frames."""

from __future__ import annotations

import torch
from vllm.model_executor.models.interfaces import SupportsMultiModalPruning
from vllm.model_executor.models.qwen2_vl import (
    Qwen2VLDummyInputsBuilder,
    Qwen2VLForConditionalGeneration,
    Qwen2VLMultiModalProcessor,
    Qwen2VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_prune.serving.api.processor import PruningProcessorMixin
from vllm_prune.serving.worker.patch_media import PatchMediaMixin
from vllm_prune.serving.worker.upload import upload


class PruneQwen2VLProcessor(PruningProcessorMixin, Qwen2VLMultiModalProcessor):
    """A contiguous video of its grid."""


@MULTIMODAL_REGISTRY.register_processor(
    PruneQwen2VLProcessor, info=Qwen2VLProcessingInfo, dummy_inputs=Qwen2VLDummyInputsBuilder
)
class PruneQwen2VLForConditionalGeneration(PatchMediaMixin, Qwen2VLForConditionalGeneration, SupportsMultiModalPruning):
    """Frames are as much shorter as they have cells that are not encoded."""

    def encode_cells(self, patches: torch.Tensor, grid_thw: tuple[int, int, int], cells: torch.Tensor) -> torch.Tensor:
        encoder = self.visual
        t, h, w = grid_thw
        unit = encoder.spatial_merge_size**2
        lengths = torch.bincount(cells // (h * w // unit), minlength=t) * unit
        ends = torch.cat((lengths.new_zeros(1), lengths[lengths > 0].cumsum(0))).to(torch.int32)
        cos, sin = encoder.rot_pos_emb([[t, h, w]])
        there = upload(cells, cos.device)
        metadata = {
            "rotary_pos_emb_cos": cos.view(-1, unit, cos.shape[1])[there].flatten(0, 1),
            "rotary_pos_emb_sin": sin.view(-1, unit, sin.shape[1])[there].flatten(0, 1),
            "cu_seqlens": upload(ends, encoder.device),
            "max_seqlen": encoder.compute_attn_mask_seqlen(ends),
        }
        return encoder(patches, grid_thw=None, encoder_metadata=metadata)
