"""A family for vllm-prune: Qwen2-VL with a number before each step of a video, as text that is never dropped."""

from typing import Any

from vllm.model_executor.models.qwen2_vl import (
    Qwen2VLDummyInputsBuilder,
    Qwen2VLMultiModalProcessor,
    Qwen2VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_prune.layout import MediumLayout
from vllm_prune.serving.api.processor import PruningProcessorMixin
from vllm_prune.serving.families.qwen2_vl import PruneQwen2VLForConditionalGeneration


class NumberedProcessor(PruningProcessorMixin, Qwen2VLMultiModalProcessor):
    """Says where the numbers are; placeholders, positions and rows follow from that."""

    def layout(self, data: Any, index: int) -> MediumLayout:
        """Of video `index` in what the Hugging Face processor made."""
        grid = self.grid(data, index)
        tokenizer = self.info.get_tokenizer()
        numbers = [tokenizer.encode(f"{step}.", add_special_tokens=False) for step in range(grid[0])]
        return MediumLayout(grid, text=(*map(tuple, numbers), ()), rope="per_step")


@MULTIMODAL_REGISTRY.register_processor(
    NumberedProcessor, info=Qwen2VLProcessingInfo, dummy_inputs=Qwen2VLDummyInputsBuilder
)
class PruneNumberedForConditionalGeneration(PruneQwen2VLForConditionalGeneration):
    """The model is Qwen2-VL's."""
