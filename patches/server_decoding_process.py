"""Decode with OpenCV in a process of its own, which may die of a damaged file, and read from the first frame on."""

import functools
from typing import Any

from vllm_prune.media.capture import RemoteCapture
from vllm_prune.media.containers import identify
from vllm_prune.media.pool import shared_pool
from vllm_prune.media.session import current_session, decode
from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_leading, require_source

_MODULE = "vllm.multimodal.video_decoders.opencv"
_TARGET = f"{_MODULE}:decode_opencv"
_MARK = "_vllm_prune_decodes_elsewhere"
_METHODS = {
    "open_video_capture": ("cls", "data"),
    "_read_frames_no_recovery": ("cls", "cap", "frame_indices"),
}
"""Of OpenCVVideoBackendMixin, with their first parameters."""
_COUNT = "demux_count_frames"
"""A method that vLLM has from 0.33 on."""


def _module() -> Any:
    from vllm.multimodal.video_decoders import opencv

    return opencv


def _verify() -> None:
    module = _module()
    mixin, name = module.OpenCVVideoBackendMixin, f"{_MODULE}:OpenCVVideoBackendMixin"
    require_leading(module.decode_opencv, ("loader_cls", "data"), _TARGET)
    used = ("cap = OpenCVVideoBackendMixin.open_video_capture(data)", "OpenCVVideoBackendMixin.get_video_metadata(")
    require_source(module.decode_opencv, used, _TARGET)
    for method, parameters in _METHODS.items():
        require_leading(mixin.__dict__[method].__func__, parameters, f"{name}.{method}")
    read = ("frames, valid_frame_indices = cls._read_frames_no_recovery(",)
    require_source(mixin.read_frames, read, f"{name}.read_frames")


def _install() -> None:
    module = _module()
    mixin = module.OpenCVVideoBackendMixin
    module.decode_opencv = _in_a_process(module.decode_opencv)
    opened, read = (mixin.__dict__[method].__func__ for method in _METHODS)
    mixin.open_video_capture = classmethod(_opened_there(opened))
    mixin._read_frames_no_recovery = classmethod(_read_at_once(read))
    mixin.get_video_metadata = staticmethod(_counted(mixin.get_video_metadata))
    if hasattr(mixin, _COUNT):
        setattr(mixin, _COUNT, classmethod(_counted_there(mixin.__dict__[_COUNT].__func__)))


def _in_a_process(original: Any) -> Any:
    @functools.wraps(original)
    def decode_opencv(loader_cls: Any, data: bytes, *args: Any, **kwargs: Any) -> Any:
        from vllm import envs

        with shared_pool(envs.VLLM_MEDIA_LOADING_THREAD_COUNT).lend() as decoder:
            return decode(decoder, data, identify(data), lambda: original(loader_cls, data, *args, **kwargs))

    setattr(decode_opencv, _MARK, True)
    return decode_opencv


def _opened_there(original: Any) -> Any:
    @functools.wraps(original)
    def open_video_capture(cls: Any, data: bytes) -> Any:
        session = current_session()
        return session.open() if session is not None else original(cls, data)

    return open_video_capture


def _counted(original: Any) -> Any:
    @functools.wraps(original)
    def get_video_metadata(source_of_frames: Any) -> Any:  # a capture, from vLLM 0.33 on the file's bytes
        source, session = original(source_of_frames), current_session()
        if session is None:
            return source
        number = session.frames_from_the_start(source.total_frames_num)
        if number == source.total_frames_num:
            return source
        fps = source.original_fps
        return source._replace(total_frames_num=number, duration=number / fps if fps > 0 else 0)

    return get_video_metadata


def _counted_there(original: Any) -> Any:
    @functools.wraps(original)
    def demux_count_frames(cls: Any, data: bytes) -> int:
        session = current_session()
        return session.count_packets() if session is not None else original(cls, data)

    return demux_count_frames


def _read_at_once(original: Any) -> Any:
    @functools.wraps(original)
    def _read_frames_no_recovery(cls: Any, cap: Any, frame_indices: set[int], *args: Any, **kwargs: Any) -> Any:
        if isinstance(cap, RemoteCapture):
            return cap.read_rgb(frame_indices)
        return original(cls, cap, frame_indices, *args, **kwargs)

    return _read_frames_no_recovery


PATCH = Patch(
    name="server_decoding_process",
    target=_TARGET,
    process="API server",
    trigger=_MODULE,
    why=(
        "OpenCV decodes within the API server, so that a file which crashes a demuxer (a damaged AVI does) ends the "
        "server. Counting the frames seeks to the end and back, which loses the first group of pictures of an MPEG "
        "transport stream with B-frames; a live recording does not say how many frames it has."
    ),
    how=(
        "Runs the same code over a capture that lives in a process of its own, bounded in time and memory; what it "
        "dies of is answered with HTTP 4xx. Frames come back in shared memory. The file is opened afresh after "
        "counting, and its frames are counted where it does not tell their number."
    ),
    upstream=(
        "https://github.com/vllm-project/vllm/issues/46589",
        "https://github.com/vllm-project/vllm/pull/57525",
        "https://github.com/opencv/opencv/issues/29699",
    ),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_module().decode_opencv, _MARK),
    verify=_verify,
    install=_install,
)
