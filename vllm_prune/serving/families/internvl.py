"""InternVL3 and 3.5 by Hugging Face's class: squares of 256 tokens, with text around each frame or an image.

A video is `Frame1: <img>`, its cells, `</img>`, and so on; an image `<img>`, the cells of all its tiles, `</img>`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from vllm.model_executor.models.interfaces import SupportsMRoPE, SupportsMultiModalPruning
from vllm.model_executor.models.interns1 import (
    InternS1DummyInputsBuilder,
    InternS1ForConditionalGeneration,
    InternS1MultiModalProcessor,
    InternS1ProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import ImageSize

from vllm_prune.layout import MediumLayout
from vllm_prune.serving.api.square_media import SquareMediaProcessor, text_around
from vllm_prune.serving.worker.sequential import SequentialPositions
from vllm_prune.serving.worker.square_media import FlatSquaresMixin


class InternVLMedia(SquareMediaProcessor):
    """Tiles of an image are laid out as frames of a video are, without text between them."""

    video_grid = "video_num_patches"
    image_grid = "image_num_patches"

    def layout(self, data: Any, index: int) -> MediumLayout:
        frames = int(data[self.video_grid][index])
        return text_around(frames, self.cells_side, self.written_video(frames), self.pad_id)

    def image_layout(self, data: Any, index: int) -> MediumLayout:
        tiles = int(data[self.image_grid][index])
        return text_around(tiles, self.cells_side, self.written_image(tiles), self.image_pad_id)

    def layout_of_size(self, size: tuple[int, int] | None, kwargs: Mapping[str, Any]) -> MediumLayout:
        assert size is not None
        cells = self.num_cells(ImageSize(height=size[0], width=size[1]), kwargs)
        side = self.cells_side
        return MediumLayout((cells // side**2, side, side), rope="sequential")

    @property
    def cells_side(self) -> int:
        """Cells along a side of a square."""
        return math.isqrt(self.square_tokens())

    def square_cells(self) -> int:
        return self.cells_side**2

    def square_tokens(self) -> int:
        return int(self.info.get_hf_processor().image_seq_length)

    @abstractmethod
    def num_cells(self, size: ImageSize, kwargs: Mapping[str, Any]) -> int:
        """Of an image; `kwargs`: of the Hugging Face processor."""

    @abstractmethod
    def written_video(self, frames: int) -> list[int]:
        """Token ids of an unpruned video."""

    @abstractmethod
    def written_image(self, tiles: int) -> list[int]:
        """Token ids of an unpruned image."""


class PruneInternVLProcessor(InternVLMedia, InternS1MultiModalProcessor):
    """As vLLM writes them for Hugging Face's class, with a line break between frames."""

    @property
    def pad_id(self) -> int:
        return int(self.info.get_tokenizer().get_vocab()[self.info.get_hf_processor().video_token])

    @property
    def image_pad_id(self) -> int:
        return int(self.info.get_hf_processor().image_token_id)

    def num_cells(self, size: ImageSize, kwargs: Mapping[str, Any]) -> int:
        found = self.info.get_num_image_tokens(
            image_width=size.width,
            image_height=size.height,
            processor=self.info.get_hf_processor(),
            mm_kwargs=kwargs,
        )
        return int(found)

    def written_video(self, frames: int) -> list[int]:
        cells = self._square(self.info.get_hf_processor().video_token)
        return self._encode("\n".join(f"Frame{i + 1}: {cells}" for i in range(frames)))

    def written_image(self, tiles: int) -> list[int]:
        return self._encode(self._square(self.info.get_hf_processor().image_token * tiles))

    def _square(self, token: str) -> str:
        processor = self.info.get_hf_processor()
        return processor.start_image_token + token * processor.image_seq_length + processor.end_image_token

    def _encode(self, text: str) -> list[int]:
        return list(self.info.get_tokenizer().encode(text, add_special_tokens=False))


@MULTIMODAL_REGISTRY.register_processor(
    PruneInternVLProcessor, info=InternS1ProcessingInfo, dummy_inputs=InternS1DummyInputsBuilder
)
class PruneInternVLForConditionalGeneration(
    FlatSquaresMixin, SequentialPositions, InternS1ForConditionalGeneration, SupportsMRoPE, SupportsMultiModalPruning
):
    """By Hugging Face's class."""
