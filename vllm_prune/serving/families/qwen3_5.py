"""Qwen3.5, dense and with experts: Qwen3-VL's videos before a decoder of which most layers are Gated DeltaNet."""

from __future__ import annotations

from vllm.model_executor.models.qwen3_5 import (
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3_5MoeProcessingInfo,
    Qwen3_5ProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl import Qwen3VLDummyInputsBuilder
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_prune.serving.families.qwen3_vl import PruneQwen3VLProcessor, Qwen3VLMediaMixin


@MULTIMODAL_REGISTRY.register_processor(
    PruneQwen3VLProcessor, info=Qwen3_5ProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class PruneQwen3_5ForConditionalGeneration(Qwen3VLMediaMixin, Qwen3_5ForConditionalGeneration):
    """Dense."""


@MULTIMODAL_REGISTRY.register_processor(
    PruneQwen3VLProcessor, info=Qwen3_5MoeProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class PruneQwen3_5MoeForConditionalGeneration(Qwen3VLMediaMixin, Qwen3_5MoeForConditionalGeneration):
    """With experts."""
