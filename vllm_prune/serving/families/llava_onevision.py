"""LLaVA-OneVision: videos of pooled frames with a newline row behind them, images of tiles with one behind each row."""

from __future__ import annotations

from vllm.model_executor.models.interfaces import SupportsMRoPE, SupportsMultiModalPruning
from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_prune.serving.families.llava_next import TiledImages
from vllm_prune.serving.worker.sequential import SequentialPositions
from vllm_prune.serving.worker.square_media import SquareMediaMixin


class PruneLlavaOnevisionProcessor(TiledImages, LlavaOnevisionMultiModalProcessor):
    """Cells of a video are two patches wide."""

    video_pins = 1

    @property
    def pool_stride(self) -> int:
        """As vLLM and Hugging Face have it, whatever the checkpoint."""
        return 2


@MULTIMODAL_REGISTRY.register_processor(
    PruneLlavaOnevisionProcessor,
    info=LlavaOnevisionProcessingInfo,
    dummy_inputs=LlavaOnevisionDummyInputsBuilder,
)
class PruneLlavaOnevisionForConditionalGeneration(
    SquareMediaMixin,
    SequentialPositions,
    LlavaOnevisionForConditionalGeneration,
    SupportsMRoPE,
    SupportsMultiModalPruning,
):
    """Videos and images."""
