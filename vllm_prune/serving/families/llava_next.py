"""LLaVA-NeXT: images of tiles, with a newline row behind each row of patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.model_executor.models.interfaces import SupportsMRoPE, SupportsMultiModalPruning
from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
    get_anyres_image_grid_shape,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_prune.layout import MediumLayout
from vllm_prune.serving.api.square_media import SquareMediaProcessor
from vllm_prune.serving.worker.sequential import SequentialPositions
from vllm_prune.serving.worker.square_media import SquareMediaMixin


class TiledImages(SquareMediaProcessor):
    """An image is a small version of itself, then all of it at once from its tiles, without what was padded.

    The encoder puts a newline row behind each row of patches of the latter. Both have different widths, so that the
    cells are one row of no shape.
    """

    flat_images = "an image here is a small version of itself and then its tiles, in one row of cells of both widths"

    def image_layout(self, data: Any, index: int) -> MediumLayout:
        height, width = map(int, data["image_sizes"][index])
        return self.layout_of_size((height, width), {})

    def layout_of_size(self, size: tuple[int, int] | None, kwargs: Mapping[str, Any]) -> MediumLayout:
        assert size is not None
        (height, width), side, config = size, self.side, self.info.get_hf_config()
        rows, columns = get_anyres_image_grid_shape(
            image_size=(height, width),
            grid_pinpoints=config.image_grid_pinpoints,
            patch_size=config.vision_config.image_size,
        )
        cells, newlines = self.info._get_num_unpadded_features(
            original_height=height,
            original_width=width,
            npatches=side,
            num_patch_height=rows,
            num_patch_width=columns,
        )
        line = cells // newlines + 1 if newlines else 0  # no row is left of a strip that is lower than a patch
        pins = tuple(side**2 + line * row - 1 for row in range(1, newlines + 1))
        return MediumLayout((1, 1, side**2 + cells), encoder_pins=pins, rope="sequential")

    def image_parts(self, layout: MediumLayout) -> Sequence[tuple[int, int]]:
        rows, others = len(layout.encoder_pins), layout.num_cells - self.side**2
        return [(self.side, self.side), *([(rows, others // rows)] if others else [])]


class PruneLlavaNextProcessor(TiledImages, LlavaNextMultiModalProcessor):
    """Images only."""


@MULTIMODAL_REGISTRY.register_processor(
    PruneLlavaNextProcessor, info=LlavaNextProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class PruneLlavaNextForConditionalGeneration(
    SquareMediaMixin, SequentialPositions, LlavaNextForConditionalGeneration, SupportsMRoPE, SupportsMultiModalPruning
):
    """Images only."""
