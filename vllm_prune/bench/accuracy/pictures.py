"""Pictures as the two ways of asking need them: pixels for an engine in this process, a data URL for a server."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vllm_prune.bench.accuracy.videos import data_url
from vllm_prune.bench.throughput.errors import BenchmarkError
from vllm_prune.media.kinds import media_type

IMAGE, VIDEO = "image", "video"


class Picture(ABC):
    """A picture that questions are about. Hashable and picklable, as videos are."""

    @property
    @abstractmethod
    def key(self) -> str:
        """Equal for questions about the same picture."""

    @property
    def scene(self) -> str:
        """Equal for pictures that show much the same."""
        return self.key

    @abstractmethod
    def pixels(self) -> np.ndarray:
        """[height, width, 3] uint8, RGB."""

    def data_url(self) -> str:
        """The picture, as base64."""
        from PIL import Image

        packed = io.BytesIO()
        Image.fromarray(self.pixels()).save(packed, "PNG")
        return data_url(packed.getvalue(), "image/png")


@dataclass(frozen=True)
class FilePicture(Picture):
    """A picture file; of an animated one, the first picture."""

    path: Path

    @property
    def key(self) -> str:
        return str(self.path)

    def pixels(self) -> np.ndarray:
        """As a server of vLLM would load the file."""
        from vllm.multimodal.media import ImageMediaIO

        try:
            return np.asarray(ImageMediaIO().load_file(self.path).media)
        except ValueError as error:
            raise BenchmarkError(f"{self.path}: {error}; give a picture that Pillow reads") from error

    def data_url(self) -> str:
        """The file as it is."""
        return data_url(self.path.read_bytes(), media_type(self.path.name, "image/png"))


def modality_of(medium: object) -> str:
    """What vLLM calls what a question is about."""
    return IMAGE if isinstance(medium, Picture) else VIDEO
