"""InternVL3 and 3.5 by the class of the published repositories, whose frames vLLM writes without line breaks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.model_executor.models.interfaces import SupportsMRoPE, SupportsMultiModalPruning
from vllm.model_executor.models.internvl import (
    InternVLChatModel,
    InternVLDummyInputsBuilder,
    InternVLMultiModalProcessor,
    InternVLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import ImageSize

from vllm_prune.serving.families.internvl import InternVLMedia
from vllm_prune.serving.worker.sequential import SequentialPositions
from vllm_prune.serving.worker.square_media import FlatSquaresMixin


class PruneInternVLChatProcessor(InternVLMedia, InternVLMultiModalProcessor):
    """As vLLM's own processor for this class writes them."""

    video_pixels = "pixel_values_flat_video"

    @property
    def pad_id(self) -> int:
        found = self.info.get_hf_processor().ctx_video_token_id
        return -1 if found is None else int(found)

    @property
    def image_pad_id(self) -> int:
        return int(self.info.get_hf_processor().ctx_image_token_id)

    def num_cells(self, size: ImageSize, kwargs: Mapping[str, Any]) -> int:
        processor = self.info.get_hf_processor(**kwargs)
        return int(
            self.info.get_num_image_tokens(image_width=size.width, image_height=size.height, processor=processor)
        )

    def written_video(self, frames: int) -> list[int]:
        return list(self.info.get_hf_processor().get_video_repl(frames).full)

    def written_image(self, tiles: int) -> list[int]:
        return list(self.info.get_hf_processor().get_image_repl(tiles).full)


@MULTIMODAL_REGISTRY.register_processor(
    PruneInternVLChatProcessor, info=InternVLProcessingInfo, dummy_inputs=InternVLDummyInputsBuilder
)
class PruneInternVLChatModel(
    FlatSquaresMixin, SequentialPositions, InternVLChatModel, SupportsMRoPE, SupportsMultiModalPruning
):
    """By the class of the published repositories."""
