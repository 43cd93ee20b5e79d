"""LLaVA-NeXT-Video: a video a prompt, of pooled frames, contiguous. vLLM serves no images of it."""

from __future__ import annotations

from vllm.model_executor.models.interfaces import SupportsMRoPE, SupportsMultiModalPruning
from vllm.model_executor.models.llava_next_video import (
    LlavaNextVideoDummyInputsBuilder,
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoMultiModalProcessor,
    LlavaNextVideoProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_prune.serving.api.square_media import SquareMediaProcessor
from vllm_prune.serving.worker.sequential import SequentialPositions
from vllm_prune.serving.worker.square_media import SquareMediaMixin


class PruneLlavaNextVideoProcessor(SquareMediaProcessor, LlavaNextVideoMultiModalProcessor):
    """Cells are as many patches wide as the checkpoint pools."""

    @property
    def pool_stride(self) -> int:
        """Patches along a side of a cell."""
        return int(self.info.get_hf_config().spatial_pool_stride)


@MULTIMODAL_REGISTRY.register_processor(
    PruneLlavaNextVideoProcessor, info=LlavaNextVideoProcessingInfo, dummy_inputs=LlavaNextVideoDummyInputsBuilder
)
class PruneLlavaNextVideoForConditionalGeneration(
    SquareMediaMixin,
    SequentialPositions,
    LlavaNextVideoForConditionalGeneration,
    SupportsMRoPE,
    SupportsMultiModalPruning,
):
    """Videos only."""
