"""The frames that vLLM's server samples from a video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vllm_prune.media.errors import UnusableVideo
from vllm_prune.show.errors import ShowError
from vllm_prune.show.story import Frames


def load_video(
    video: str, model: str, media_io_kwargs: dict[str, Any] | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Frames [F, height, width, 3] and the metadata that vLLM's loader for `model` gives.

    Args:
        video: A file, an http(s) URL or a data URL.
        model: A folder or hub name; its video processor decides how frames are sampled.
        media_io_kwargs: As vLLM's option of that name.

    Raises:
        ShowError: There is no such file, or it cannot be decoded.
    """
    from vllm.multimodal.media.connector import MediaConnector
    from vllm.transformers_utils.processor import get_video_processor_cls_name_from_config

    from vllm_prune.patches import apply_all

    apply_all()  # the server's checks of videos, also where no engine has loaded the plugin
    url, folder = locate(video)
    connector = MediaConnector(media_io_kwargs or {}, allowed_local_media_path=folder)
    processor = get_video_processor_cls_name_from_config(model)
    try:
        frames, metadata = connector.fetch_video(url, video_processor=processor).media
    except Exception as error:  # decoders raise what they like; all of it is about the file
        raise ShowError(f"video={shorten(video)!r}: cannot be decoded: {_reason(error)}") from error
    return np.asarray(frames), metadata


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
