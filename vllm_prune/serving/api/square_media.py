"""What families whose images and frames are squares of one size say to the multimodal processor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from transformers import BatchFeature
from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataItems
from vllm.multimodal.processing.processor import BaseMultiModalProcessor

from vllm_prune.config import PruneConfig, PruneConfigError
from vllm_prune.layout import MediumLayout
from vllm_prune.serving.api.processor import PruningProcessorMixin
from vllm_prune.serving.api.prune_inputs import request_config

_EMBEDS = "image_embeds"


class SquareMediaProcessor(PruningProcessorMixin, BaseMultiModalProcessor[Any]):
    """Put before a model's own processor class; positions go on by one from slot to slot."""

    video_grid: ClassVar[str] = "pixel_values_videos"
    """There are no grids: a video's has one entry for each frame, and the frames' are all alike."""
    image_grid: ClassVar[str] = "pixel_values"
    plans_on_pixels: ClassVar[bool] = False
    may_renumber: ClassVar[bool] = True
    video_pins: ClassVar[int] = 0
    """Rows that the encoder adds behind a video."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._check_squares()

    def _check_squares(self) -> None:
        """Refuses a checkpoint of which a token is not one of the cells of a square."""
        given, cells = self.square_tokens(), self.square_cells()
        if given != cells:
            kind = self.info.get_hf_config().vision_config.model_type
            raise PruneConfigError(
                f"model: its vision encoder ({kind}) hands out {given} tokens for a square of {cells} cells, and each "
                f"has to be one of these; serve this checkpoint with stock vLLM"
            )

    def square_cells(self) -> int:
        """Cells of a square, before those of a video are pooled."""
        return self.side**2

    def square_tokens(self) -> int:
        """Tokens that the encoder hands out for a square, as vLLM counts them."""
        config, encoder = self.info.get_hf_config(), self.info.get_vision_encoder_info()
        size = config.vision_config.image_size
        tokens = encoder.get_num_image_tokens(image_width=size, image_height=size)
        return int(tokens - (config.vision_feature_select_strategy == "default"))  # which drops the first one

    @property
    def pad_id(self) -> int:
        return self._token("video_token_index")

    @property
    def image_pad_id(self) -> int:
        return self._token("image_token_index")

    def _token(self, name: str) -> int:
        """By the model's configuration, as vLLM's processor has it; -1 where it takes no such media."""
        return int(getattr(self.info.get_hf_config(), name, -1))

    @property
    def pool_stride(self) -> int:
        """Patches along a side of a video's cell."""
        return 1

    @property
    def side(self) -> int:
        """Patches along a side of a square."""
        vision = self.info.get_hf_config().vision_config
        return int(vision.image_size // vision.patch_size)

    @property
    def cells_side(self) -> int:
        """Cells along a side of a frame."""
        return math.ceil(self.side / self.pool_stride)

    def layout(self, data: Any, index: int) -> MediumLayout:
        frames, side = len(data[self.video_grid][index]), self.cells_side
        cells = frames * side**2
        return MediumLayout(
            (frames, side, side), encoder_pins=tuple(range(cells, cells + self.video_pins)), rope="sequential"
        )

    @property
    def frames_of_step(self) -> int:
        return 1

    def tokens_of_frames(self, width: int, height: int, frames: int, options: Mapping[str, Any]) -> int:
        """Whatever their size."""
        return frames * self.cells_side**2

    def image_layout(self, data: Any, index: int) -> MediumLayout:
        return self.layout_of_size(None, {})

    def layout_of_size(self, size: tuple[int, int] | None, kwargs: Mapping[str, Any]) -> MediumLayout:
        """An image by its (height, width) in pixels; None where the size does not matter.

        kwargs: Of the Hugging Face processor, by which an image may have other tiles.
        """
        return MediumLayout((1, self.side, self.side), rope="sequential")

    def image_sizes(self, items: MultiModalDataItems, kwargs: Mapping[str, Any]) -> list[int]:
        images = items.get("image")
        if images is None:
            return []
        if not isinstance(images, ImageProcessorItems) or any(image is None for image in images.get_all()):
            raise PruneConfigError(
                "image.total: an image that is sent as embeddings, or named by its uuid alone, has no size to share "
                "it by; send the image, or leave image.total out"
            )
        sizes = [images.get_image_size(i) for i in range(len(images))]
        return [self.layout_of_size((size.height, size.width), kwargs).num_cells for size in sizes]

    def add_image_specs(self, data: BatchFeature, hf_kwargs: Mapping[str, Any]) -> None:
        if _EMBEDS in data and request_config(hf_kwargs).prunes_images:
            raise PruneConfigError(
                f"image: {_EMBEDS} do not say where their rows lie in the image; send the image itself, or leave "
                f"image out"
            )
        super().add_image_specs(data, hf_kwargs)

    def check_embeddings(self, data: Any) -> None:
        """There is nothing to hold them against but the decoder's width, as vLLM's parser does."""

    def check_can_serve(self, config: PruneConfig) -> None:
        super().check_can_serve(config)
        for place, part in (("prune", config), ("image", config.image and config.image.choice)):
            if part and part.needs_encoder_attention:
                raise PruneConfigError(
                    f"{place}.method={part.method!r}: needs the attention inside the vision encoder, which is not "
                    f"read in this model's; choose another method"
                )


def text_around(steps: int, side: int, ids: list[int], pad_id: int) -> MediumLayout:
    """The layout of a medium that is written as `ids`: `steps` squares of `side` x `side` placeholders, and text.

    >>> text_around(2, 1, [8, 5, 9, 8, 7, 5, 9], pad_id=5).text
    ((8,), (9, 8, 7), (9,))
    """
    written = np.array(ids)
    is_text = written != pad_id
    before = (~is_text).cumsum()[is_text]  # placeholders before each token of text
    step = -(-before // side**2)
    text = tuple(tuple(written[is_text][step == index].tolist()) for index in range(steps + 1))
    return MediumLayout((steps, side, side), text, rope="sequential")
