"""Videos go through the model's video processor in groups of frames, so that their pixels exist once.

Groups give the same bits as the whole. What they become is decided while they are made (`video_pixels.py`): the
processor hands on what it says of videos, and pixels without values, as long as somebody takes the videos.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import BatchFeature
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor
from transformers.models.llava_next_video.video_processing_llava_next_video import LlavaNextVideoVideoProcessor
from transformers.models.llava_onevision.video_processing_llava_onevision import LlavaOnevisionVideoProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from vllm.multimodal.processing import InputProcessingContext

from vllm_prune.hook import Hooked, hook
from vllm_prune.serving.api.grid_groups import GridGroups
from vllm_prune.serving.api.grouped_video import GroupedVideo
from vllm_prune.serving.api.square_groups import TILES, SquareGroups, TileGroups
from vllm_prune.serving.api.taken_videos import TAKING, Taking

_WAYS: dict[type[Any], type[Any]] = {
    Qwen2VLVideoProcessor: GridGroups,
    Qwen3VLVideoProcessor: GridGroups,
    LlavaOnevisionVideoProcessor: SquareGroups,
    LlavaNextVideoVideoProcessor: SquareGroups,
    InternVLVideoProcessor: SquareGroups,
}
"""By video processor of Hugging Face's, what is put before it."""


class GroupingContext(Hooked, InputProcessingContext):
    """vLLM's context of a processor, whose video processor takes groups of frames when it is told to."""

    @classmethod
    def of(cls, context: InputProcessingContext) -> GroupingContext:
        """The same as vLLM's own."""
        return cls(**{field.name: getattr(context, field.name) for field in dataclasses.fields(context)})

    @hook
    def call_hf_processor(
        self, hf_processor: Any, data: Mapping[str, object], kwargs: Mapping[str, object] = {}
    ) -> BatchFeature:
        videos = getattr(hf_processor, "video_processor", None)
        if videos is not None:
            kind: Any = type(videos)
            videos.__class__ = _grouping(kind)
        return super().call_hf_processor(hf_processor, data, kwargs)

    @contextmanager
    def taking_videos(self) -> Iterator[list[GroupedVideo]]:
        """The videos that the processor is given meanwhile, in order; empty where it takes them whole."""
        taking = Taking(self._postprocess_output)
        token = TAKING.set(taking)
        try:
            yield taking.videos
        finally:
            TAKING.reset(token)


@functools.cache
def _grouping(kind: type[Any]) -> type[Any]:
    """A class of video processors that takes groups, or `kind` itself if it does, or nothing is known of it.

    It has the name of the original, which vLLM chooses a loader of videos by.
    """
    way = TileGroups if hasattr(kind, TILES) else next((_WAYS[base] for base in kind.__mro__ if base in _WAYS), None)
    if way is None or issubclass(kind, way):
        return kind
    return type(kind.__name__, (way, kind), {"__module__": kind.__module__})
