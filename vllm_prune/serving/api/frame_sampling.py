"""Samples as many frames of a file as a request's kept tokens allow, by vLLM's own loaders. Lives in the API server.

A request's options for loading videos get a loader of ours and a `FrameSampler` for it; the loader runs the one that
would have been used, which asks the sampler how many frames it takes as soon as the file is open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm import envs
from vllm.multimodal.video import (
    VIDEO_LOADER_REGISTRY,
    Qwen2VLVideoBackend,
    Qwen3VLVideoBackend,
    VideoBackend,
    VideoLoader,
    get_video_loader_backend_for_processor,
)
from vllm.multimodal.video_decoders.base import VideoSourceMetadata, VideoTargetMetadata

from vllm_prune.config import PruneConfig
from vllm_prune.hook import Hooked, hook
from vllm_prune.media.errors import UnusableVideo
from vllm_prune.media.session import current_session
from vllm_prune.serving.api.frame_budget import FrameBudget
from vllm_prune.serving.api.frame_options import check_options
from vllm_prune.serving.api.prune_inputs import without_prune
from vllm_prune.serving.wire.settings import REQUEST_KEY

if TYPE_CHECKING:
    from vllm_prune.serving.api.processor import PruningProcessorMixin

_LOADER = "vllm_prune_frames"
_SAMPLER = "vllm_prune_sampler"
_WIDTH, _HEIGHT = 3, 4  # OpenCV's CAP_PROP_FRAME_WIDTH and _HEIGHT


@dataclass(frozen=True)
class Sampler:
    """Runs vLLM's own loader, and says which frames it takes."""

    loader: str
    """vLLM's name of it."""
    given: Mapping[str, Any]
    """Its options."""

    def load(self, data: bytes) -> tuple[Any, dict[str, Any]]:
        """Frames of a file, and their metadata, as a loader of vLLM's returns them."""
        kind: Any = type(VIDEO_LOADER_REGISTRY.load(self.loader))
        sampling: Any = type(kind.__name__, (_Sampling, kind), {"sampler": self})
        frames, metadata = sampling.load_bytes(data, **self.given)
        # Else Hugging Face's processor may sample them again, by a rate.
        return frames, {**metadata, "do_sample_frames": False}

    def indices(self, kind: Any, source: VideoSourceMetadata, target: VideoTargetMetadata, **options: Any) -> list[int]:
        """Of the frames of an open file: those that vLLM's loader `kind` samples if it is asked for so many."""
        raise NotImplementedError


@dataclass(frozen=True)
class KnownNumber(Sampler):
    """Takes as many frames as somebody else did."""

    count: int

    def indices(self, kind: Any, source: VideoSourceMetadata, target: VideoTargetMetadata, **options: Any) -> list[int]:
        return spaced(kind, source, target, min(self.count, source.total_frames_num), options)


@dataclass(frozen=True)
class FrameSampler(Sampler):
    """Takes as many frames of the videos of a request as its configuration allows."""

    asked: FrameBudget
    """By the request's configuration."""
    server: FrameBudget | None
    """By the server's own, where a request may have no more than that."""
    tighter: bool
    """Whether it may have no more than vLLM would sample, where the server's own says nothing."""

    def indices(self, kind: Any, source: VideoSourceMetadata, target: VideoTargetMetadata, **options: Any) -> list[int]:
        most = self._most(kind, source, target, options)
        size = _frame_size()
        fewest = min(self.given.get("min_frames", 1), source.total_frames_num)
        for budget in self.budgets:
            most = min(most, budget.count(size, most, min(fewest, most)))
        return spaced(kind, source, target, most, options)

    @property
    def budgets(self) -> list[FrameBudget]:
        """All that there are, of which the tightest counts."""
        return [self.asked] if self.server is None else [self.server, self.asked]

    def _most(
        self, kind: Any, source: VideoSourceMetadata, target: VideoTargetMetadata, options: Mapping[str, Any]
    ) -> int:
        """Frames that the file has, and that options which somebody gave allow; a step of the grid at the least."""
        total = source.total_frames_num
        most = [total]
        if self.tighter and self.server is None:
            most.append(_own_number(kind, source, target, options))
        for name in ("num_frames", "max_frames"):
            if (limit := self.given.get(name, -1)) > 0:
                most.append(limit)
        if (rate := self.given.get("fps", -1)) > 0 and source.original_fps > 0:
            most.append(int(min(total / source.original_fps * rate, total)))
        return max(min(most), min(self.asked.processor.frames_of_step, total), 1)


def _own_number(kind: Any, source: VideoSourceMetadata, target: VideoTargetMetadata, options: Mapping[str, Any]) -> int:
    """Frames that vLLM's loader samples by itself."""
    try:
        return len(kind.compute_frames_index_to_sample(source, target, **options))
    except ZeroDivisionError:  # it divides by their number, rounded down to whole steps of the grid
        return 0


def takes_a_number(kind: Any) -> bool:
    """Whether vLLM's loader can be told how many frames to sample; those of other models follow rates of their own."""
    plain = VideoBackend.compute_frames_index_to_sample.__func__
    by_number = getattr(kind.compute_frames_index_to_sample, "__func__", None) is plain
    return by_number or issubclass(kind, Qwen2VLVideoBackend | Qwen3VLVideoBackend)


def spaced(
    kind: Any, source: VideoSourceMetadata, target: VideoTargetMetadata, most: int, options: Mapping[str, Any]
) -> list[int]:
    """Indices of `most` frames as vLLM's loader spaces them; of its own, if it takes no number, no more than that."""
    if takes_a_number(kind):
        return sampled(kind, source, most, options)
    own: list[int] = kind.compute_frames_index_to_sample(source, target, **options)
    return own[:: -(-len(own) // most)]


def sampled(kind: Any, source: VideoSourceMetadata, count: int, options: Mapping[str, Any]) -> list[int]:
    """Indices of `count` frames as vLLM's loader, which takes a number, spaces them.

    Loaders that follow a rate clamp its result between two limits, and these to one of their own.
    """
    limits = {**options, "min_frames": count, "max_frames": count}
    exact: Any = type(kind.__name__, (kind,), {"_MAX_FRAMES": count})
    indices: list[int] = exact.compute_frames_index_to_sample(source, VideoTargetMetadata(count, -1, -1), **limits)
    return indices


def family_loader(processor: PruningProcessorMixin) -> str:
    """vLLM's name of the loader that samples the frames of a model's videos, if nobody asks for another."""
    kind = type(getattr(processor.info.get_hf_processor(), "video_processor", None)).__name__
    return get_video_loader_backend_for_processor(kind) or envs.VLLM_VIDEO_LOADER_BACKEND


def _frame_size() -> tuple[int, int]:
    session = current_session()
    assert session is not None  # the decoder is OpenCV: `sampling_options` sees to it
    assert session.capture is not None
    return int(session.capture.get(_WIDTH)), int(session.capture.get(_HEIGHT))


class _Sampling:
    """Put before a loader of vLLM's."""

    sampler: Sampler

    @classmethod
    def compute_frames_index_to_sample(cls, source: Any, target: Any, **options: Any) -> list[int]:
        return cls.sampler.indices(cls.__mro__[2], source, target, **options)


@VIDEO_LOADER_REGISTRY.register(_LOADER)
class FrameLoader(Hooked, VideoLoader):
    """Loads a video as the sampler says that it is given."""

    @classmethod
    @hook
    def load_bytes(cls, data: bytes, num_frames: int = -1, **options: Any) -> tuple[Any, dict[str, Any]]:
        sampler = options.get(_SAMPLER)
        if not isinstance(sampler, Sampler):
            raise UnusableVideo(f"video_backend={_LOADER!r}: is no option of requests", "leave it out")
        return sampler.load(data)


def sampling_options(
    processor: PruningProcessorMixin, given: Mapping[str, Any], default: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The options for loading a request's videos, where their frames follow the kept tokens; else None.

    Args:
        processor: The model's.
        given: Options for loading videos, the request's among them.
        default: Those of the operator.
        options: The request's `mm_processor_kwargs`.

    Raises:
        PruneConfigError: The options contradict `frames`, or are none (see `check_options`).
    """
    config, server = processor.resolve(options.get(REQUEST_KEY)), processor.settings.config
    if config.frames is None:
        return None
    check_options(config, server, given, default, options)
    return loader_options(frame_sampler(processor, config, without_prune(options), given), given)


def loader_options(sampler: Sampler, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options for loading videos by which `sampler` takes their frames; `given`: those that there were."""
    # -1: every picture of a list, which is no file; the processor leaves as many of them out.
    return {"num_frames": -1, **_of_lists(given), "video_backend": _LOADER, _SAMPLER: sampler}


def frame_sampler(
    processor: PruningProcessorMixin, config: PruneConfig, options: Mapping[str, Any], given: Mapping[str, Any]
) -> FrameSampler:
    """What decides for a request with a resolved `config` (see `FrameSampler`)."""
    settings = processor.settings
    changed, bounded = config != settings.config, settings.override == "tighten"
    server = settings.config if changed and bounded and settings.config.frames is not None else None
    return FrameSampler(
        asked=FrameBudget(processor, config, options),
        server=None if server is None else FrameBudget(processor, server, options),
        tighter=changed and bounded,
        loader=given.get("video_backend") or family_loader(processor),
        given={name: value for name, value in given.items() if name != "video_backend"},
    )


def _of_lists(given: Mapping[str, Any]) -> dict[str, Any]:
    """What vLLM reads of a list of pictures."""
    names = ("num_frames", "fps", "frames_indices", "total_num_frames", "duration", "do_sample_frames")
    return {name: given[name] for name in names if name in given}
