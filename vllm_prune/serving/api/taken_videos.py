"""Video processors that hand over videos to whoever takes them, before anything is computed."""

from __future__ import annotations

import dataclasses
import functools
from abc import abstractmethod
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from transformers import BatchFeature
from transformers.video_processing_utils import BaseVideoProcessor

from vllm_prune.serving.api.grouped_video import GroupedVideo


@dataclasses.dataclass
class Taking:
    """Who takes videos."""

    finish: Callable[[Any], Any]
    """What vLLM does to every tensor of the processor."""
    videos: list[GroupedVideo] = dataclasses.field(default_factory=list)


TAKING: ContextVar[Taking | None] = ContextVar("vllm_prune_taking", default=None)


class Frames:
    """Frames of one video as they came."""

    def __init__(self, frames: Any, prepare: Callable[[list[Any]], list[torch.Tensor]]) -> None:
        self._frames, self._prepare = frames, prepare

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, some: slice) -> torch.Tensor:
        """[n, channels, height, width], as the processor computes with them."""
        return self._prepare([self._frames[some]])[0]


class InGroups(BaseVideoProcessor):
    """Put before a video processor of Hugging Face's."""

    def _prepare_input_videos(self, videos: Any, **options: Any) -> Any:
        prepare = functools.partial(super()._prepare_input_videos, **options)
        # A layout is given for frames with transparency, which are blended where any frame of the video has some.
        if TAKING.get() is None or options.get("input_data_format") is not None:
            return prepare(videos)
        return [Frames(video, prepare) for video in videos]

    def _preprocess(self, videos: Any, **options: Any) -> BatchFeature:
        taking, preprocess = TAKING.get(), super()._preprocess
        if taking is None or not all(isinstance(video, Frames) for video in videos):
            return preprocess(videos, **options)
        grouped = [self._grouped(video, options, preprocess, taking.finish) for video in videos]
        taking.videos += grouped
        return BatchFeature(data=self._without_values(grouped), tensor_type=options.get("return_tensors"))

    @abstractmethod
    def _grouped(
        self,
        frames: Frames,
        options: dict[str, Any],
        preprocess: Callable[..., BatchFeature],
        finish: Callable[[Any], Any],
    ) -> GroupedVideo:
        """`preprocess`: Hugging Face's, of frames [n, channels, height, width] each."""

    @abstractmethod
    def _without_values(self, videos: list[GroupedVideo]) -> dict[str, Any]:
        """What the processor says of videos, their pixels left out."""
