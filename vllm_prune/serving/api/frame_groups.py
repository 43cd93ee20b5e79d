"""Videos go through the Hugging Face video processor in groups of frames, so that their pixels exist once.

Called on a whole video, the processor holds its frames as bytes twice and three copies in float32 at once, twenty times
the bytes of the frames that it was given. A step of the grid follows from its own frames, and the frames' new size from
their number, so that groups of steps give the same bits. What they become is decided while they are made
(`video_pixels.py`): the processor hands on grids, and patches without values, as long as somebody takes the videos.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import BatchFeature
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.video_processing_utils import BaseVideoProcessor
from vllm.multimodal.processing import InputProcessingContext

from vllm_prune.hook import Hooked, hook

GROUP_BYTES = 8 << 20
"""Of a group's pixels in float32, at the most, unless a step has more; the processor holds some copies of them."""


class GroupedVideo:
    """The pixels of a video, made a group of steps of its grid at a time."""

    def __init__(
        self, grid_thw: tuple[int, int, int], steps_at_once: int, make: Callable[[slice], torch.Tensor]
    ) -> None:
        """`make`: patches [n * H * W, ...] of n steps, in the precision and on the device of the request's tensors."""
        self.grid_thw = t, h, w = grid_thw
        self._per_step, self._make = h * w, make
        self.groups = [slice(start, min(start + steps_at_once, t)) for start in range(0, t, steps_at_once)]
        # Made at once, so that what the processor cannot take is found out while it runs.
        self._first: torch.Tensor | None = make(self.groups[0])
        self.patch_width, self.dtype = self._first.shape[1], self._first.dtype

    @classmethod
    def of_patches(cls, patches: torch.Tensor, grid_thw: tuple[int, int, int]) -> GroupedVideo:
        """A video that is there, in one group."""
        return cls(grid_thw, grid_thw[0], lambda _: patches)

    @property
    def num_bytes(self) -> int:
        """Of all of its patches."""
        return math.prod(self.grid_thw) * self.patch_width * self.dtype.itemsize

    def pixels(self, group: slice) -> torch.Tensor:
        """Patches of one of `groups`."""
        first, self._first = self._first, None
        return first if first is not None and group == self.groups[0] else self._make(group)

    def whole(self) -> torch.Tensor:
        """All patches, [T * H * W, ...]."""
        pixels = self.pixels(self.groups[0])
        if len(self.groups) == 1:
            return pixels
        whole = pixels.new_empty(math.prod(self.grid_thw), self.patch_width)
        whole[: len(pixels)] = pixels
        del pixels
        for group in self.groups[1:]:
            whole[group.start * self._per_step : group.stop * self._per_step] = self.pixels(group)
        return whole


@dataclasses.dataclass
class _Taking:
    """Who takes videos."""

    finish: Callable[[Any], Any]
    """What vLLM does to every tensor of the processor."""
    videos: list[GroupedVideo] = dataclasses.field(default_factory=list)


_TAKING: ContextVar[_Taking | None] = ContextVar("vllm_prune_taking", default=None)


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
        if isinstance(videos, Qwen2VLVideoProcessor | Qwen3VLVideoProcessor) and not isinstance(videos, _InGroups):
            videos.__class__ = _grouping(type(videos))
        return super().call_hf_processor(hf_processor, data, kwargs)

    @contextmanager
    def taking_videos(self) -> Iterator[list[GroupedVideo]]:
        """The videos that the processor is given meanwhile, in order; empty where it takes them whole."""
        taking = _Taking(self._postprocess_output)
        token = _TAKING.set(taking)
        try:
            yield taking.videos
        finally:
            _TAKING.reset(token)


def _grouping(kind: type[Any]) -> type[Any]:
    """By the name of the original, which vLLM chooses a loader of videos by."""
    return type(kind.__name__, (_InGroups, kind), {"__module__": kind.__module__})


class _Frames:
    """Frames of one video as they came."""

    def __init__(self, frames: Any, prepare: Callable[[list[Any]], list[torch.Tensor]]) -> None:
        self._frames, self._prepare = frames, prepare

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, some: slice) -> torch.Tensor:
        """[1, n, channels, height, width], as the processor computes with them."""
        return self._prepare([self._frames[some]])[0][None]


class _InGroups(BaseVideoProcessor):
    """Put before a video processor of Qwen's."""

    def _prepare_input_videos(self, videos: Any, **options: Any) -> Any:
        prepare = functools.partial(super()._prepare_input_videos, **options)
        return prepare(videos) if _TAKING.get() is None else [_Frames(video, prepare) for video in videos]

    def _preprocess(self, videos: Any, **options: Any) -> BatchFeature:
        taking = _TAKING.get()
        if taking is None:
            return super()._preprocess(videos, **options)
        grouped = [self._grouped(video, options, taking.finish) for video in videos]
        taking.videos += grouped
        grids = torch.tensor([video.grid_thw for video in grouped])
        patches = torch.empty(int(grids.prod(1).sum()), 0)
        data = {"pixel_values_videos": patches, "video_grid_thw": grids}
        return BatchFeature(data=data, tensor_type=options.get("return_tensors"))

    def _grouped(self, frames: _Frames, options: dict[str, Any], finish: Callable[[Any], Any]) -> GroupedVideo:
        patch, steps_of = options["patch_size"], options["temporal_patch_size"]
        like = frames[:1]
        height, width = self._frame_size(len(frames), like, options) if options["do_resize"] else like.shape[-2:]
        num_steps = -(-len(frames) // steps_of)
        steps_at_once = max(GROUP_BYTES // (steps_of * like.shape[2] * height * width * torch.float32.itemsize), 1)
        preprocess = super()._preprocess

        def make(steps: slice) -> torch.Tensor:
            some = frames[steps.start * steps_of : steps.stop * steps_of]
            if options["do_resize"]:
                size = SizeDict(height=height, width=width)
                some = BaseVideoProcessor.resize(self, some, size, options["resample"])
            made = preprocess([some[0]], **{**options, "do_resize": False})
            pixels: torch.Tensor = finish(made["pixel_values_videos"])
            return pixels

        return GroupedVideo((num_steps, height // patch, width // patch), steps_at_once, make)

    def _frame_size(self, num_frames: int, like: torch.Tensor, options: dict[str, Any]) -> tuple[int, int]:
        """Height and width that the processor gives the frames of a video, from tensors without values."""
        video = torch.empty(1, num_frames, *like.shape[2:], dtype=like.dtype, device="meta")
        resized = self.resize(
            videos=video,
            size=options["size"],
            resample=options["resample"],
            factor=options["patch_size"] * options["merge_size"],
            temporal_factor=options["temporal_patch_size"],
            cap_pixels_per_frame=bool(options.get("cap_pixels_per_frame")),
        )
        return int(resized.shape[-2]), int(resized.shape[-1])
