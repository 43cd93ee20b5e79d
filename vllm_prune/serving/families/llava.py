"""LLaVA-1.5: images of one square each, whose patches are all tokens, and a decoder with plain RoPE."""

from __future__ import annotations

from vllm.model_executor.models.interfaces import SupportsMRoPE, SupportsMultiModalPruning
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_prune.serving.api.square_media import SquareMediaProcessor
from vllm_prune.serving.worker.sequential import SequentialPositions
from vllm_prune.serving.worker.square_media import SquareMediaMixin


class PruneLlavaProcessor(SquareMediaProcessor, LlavaMultiModalProcessor):
    """576 tokens an image with CLIP's ViT-L/14 at 336 pixels."""


@MULTIMODAL_REGISTRY.register_processor(
    PruneLlavaProcessor, info=LlavaProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class PruneLlavaForConditionalGeneration(
    SquareMediaMixin,
    SequentialPositions,
    LlavaForConditionalGeneration,
    SupportsMRoPE,
    SupportsMultiModalPruning,
):
    """Images only."""
