"""Refuse files of formats that are not let in, that are cut off, or whose frames are missing or of unusable shape."""

import functools
from collections.abc import Sequence
from typing import Any

from vllm_prune.media.errors import UnusableVideo
from vllm_prune.media.policy import check_container, let_in
from vllm_prune.media.session import frames_are_missing
from vllm_prune.media.whole import check_file_is_whole
from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_leading, require_source

_MODULE = "vllm.multimodal.video"
_TARGET = f"{_MODULE}:decode_video"
_MARK = "_vllm_prune_refuses_damaged_videos"

_FEWEST_PIXELS = 2  # a side; no codec with subsampled colour makes less
_LONGEST_RATIO = 200  # of the sides: what the image processors of the Qwen-VL family accept


def _module() -> Any:
    from vllm.multimodal import video

    return video


def _verify() -> None:
    require_leading(_module().decode_video, ("backend", "loader_cls", "data"), _TARGET)
    caller = "frames, source, frame_idx, valid = decode_video("
    load_bytes = _module().VideoBackend.load_bytes
    require_source(load_bytes, (caller,), f"{_MODULE}:VideoBackend.load_bytes")


def _install() -> None:
    original = _module().decode_video

    @functools.wraps(original)
    def decode_video(backend: Any, loader_cls: Any, data: bytes, *args: Any, **kwargs: Any) -> Any:
        check_file_is_whole(data, check_container(data, let_in()))
        frames, source, sampled, valid = original(backend, loader_cls, data, *args, **kwargs)
        check_frames_are_there(sampled, valid)
        check_frame_size(frames.shape[1], frames.shape[2])
        return frames, source, sampled, valid

    setattr(decode_video, _MARK, True)
    _module().decode_video = decode_video


def check_frames_are_there(sampled: Sequence[int], decoded: Sequence[int]) -> None:
    """Raise UnusableVideo if there are none of the `sampled` frames, or more than a tenth (and than one) is missing."""
    if len(decoded) == 0 or frames_are_missing(sampled, decoded):
        raise UnusableVideo(
            f"only {len(decoded)} of {len(sampled)} sampled frames can be decoded; the file is damaged or cut off"
        )


def check_frame_size(height: int, width: int) -> None:
    """Raise UnusableVideo for frames that no vision encoder can take."""
    if min(height, width) < _FEWEST_PIXELS:
        raise UnusableVideo(f"frames of {width}x{height} pixels; they need {_FEWEST_PIXELS} or more in each direction")
    if max(height, width) > _LONGEST_RATIO * min(height, width):
        raise UnusableVideo(
            f"frames of {width}x{height} pixels; one side may be at most {_LONGEST_RATIO} times the other"
        )


PATCH = Patch(
    name="server_damaged_videos",
    target=_TARGET,
    process="API server",
    trigger=_MODULE,
    why=(
        "Any format that FFmpeg knows is opened, also texts that name other files and addresses (SDP, playlists). A "
        "file that was cut off may decode to as many frames as are left, and the server answers from those with no "
        "more than a line in its log; with none left, or with frames of an unusable shape, the error that reaches the "
        "client is a printout of pixels."
    ),
    how=(
        "Wraps the decoder and raises ValueError (HTTP 4xx) if the leading bytes are those of a format that is not let "
        "in, if an mp4 or Matroska file ends too early, if more than a tenth of the sampled frames is missing, if a "
        "side has less than two pixels, or if one is more than 200 times the other."
    ),
    upstream=("https://github.com/vllm-project/vllm/pull/29001",),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_module().decode_video, _MARK),
    verify=_verify,
    install=_install,
)
