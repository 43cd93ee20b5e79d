"""The frames that vLLM's server samples from a video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vllm_prune.media.errors import UnusableVideo
from vllm_prune.show.errors import ShowError
from vllm_prune.show.story import Frames


def load_video(
    video: str, model: str, media_io_kwargs: dict[str, Any] | None = None, frames: int | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Frames [F, height, width, 3] and the metadata that vLLM's loader for `model` gives.

    Args:
        video: A file, an http(s) URL or a data URL.
        model: A folder or hub name; its video processor decides how frames are sampled.
        media_io_kwargs: As vLLM's option of that name; with `min_frames` and `max_frames` alike, that many frames, also
            above the 768 that vLLM's loaders stop at.
        frames: So many of them, evenly over the file; None: as many as vLLM samples.

    Raises:
        ShowError: There is no such file, or it cannot be decoded.
    """
    from vllm.multimodal.media.connector import MediaConnector
    from vllm.transformers_utils.processor import get_video_processor_cls_name_from_config

    from vllm_prune.patches import apply_all

    apply_all()  # the server's checks of videos, also where no engine has loaded the plugin
    url, folder = locate(video)
    processor, options = get_video_processor_cls_name_from_config(model), dict(media_io_kwargs or {})
    given = options.get("video", {})
    frames = _exact_number(given) if frames is None else frames
    if frames is not None:
        options["video"] = _options_of_number(frames, given, processor)
    connector = MediaConnector(options, allowed_local_media_path=folder)
    try:
        images, metadata = connector.fetch_video(url, video_processor=processor).media
    except Exception as error:  # decoders raise what they like; all of it is about the file
        raise ShowError(f"video={shorten(video)!r}: cannot be decoded: {_reason(error)}") from error
    return np.asarray(images), metadata


def load_sampled(
    video: str, model: str, steps: int, media_io_kwargs: dict[str, Any] | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """As `load_video`, with as many frames as a server sampled by `frames` for so many steps of the grid."""
    from vllm_prune.estimate.dims import read_dims

    return load_video(video, model, media_io_kwargs, frames=steps * read_dims(model).vision.temporal_patch)


def _exact_number(given: dict[str, Any]) -> int | None:
    """As a server with `frames` may have sampled them."""
    least, most = given.get("min_frames"), given.get("max_frames")
    return most if type(most) is int and 1 < most == least else None


def _options_of_number(count: int, given: dict[str, Any], processor: str | None) -> dict[str, Any]:
    from vllm import envs
    from vllm.multimodal.video import get_video_loader_backend_for_processor

    from vllm_prune.serving.api.frame_sampling import KnownNumber, loader_options

    loader = given.get("video_backend") or get_video_loader_backend_for_processor(processor)
    own = {name: value for name, value in given.items() if name != "video_backend"}
    return loader_options(KnownNumber(loader or envs.VLLM_VIDEO_LOADER_BACKEND, own, count), given)


def _reason(error: Exception) -> str:
    """What is wrong and what helps, without the server's words about requests."""
    from vllm.exceptions import VLLMUnprocessableEntityError

    if isinstance(error, VLLMUnprocessableEntityError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, UnusableVideo) and error.remedy:
        return str(error)
    return f"{str(error) or type(error).__name__}; give a video such as mp4"


def locate(video: str) -> tuple[str, str]:
    """A URL for vLLM, and the folder it may read."""
    if video.startswith(("http://", "https://", "data:")):
        return video, ""
    path = Path(video).resolve()
    if not path.is_file():
        raise ShowError(f"video={video!r}: no such file; give a file, an http(s) URL or a data URL")
    return path.as_uri(), str(path.parent)


def to_frames(video: str, images: np.ndarray, metadata: dict[str, Any]) -> Frames:
    """The frames with their times."""
    fps = metadata.get("fps") or 1.0
    indices = metadata.get("frames_indices") or range(len(images))
    seconds = np.array(list(indices)[: len(images)], dtype=np.float64) / fps
    return Frames(images, seconds, shorten(video))


def shorten(video: str) -> str:
    """A name for titles.

    >>> shorten("/a/b.mp4"), shorten("data:video/mp4;base64,AAAA")
    ('b.mp4', 'video')
    """
    return "video" if video.startswith("data:") else video.rstrip("/").rpartition("/")[2]
