"""Refuse a video of fewer than two frames with a message, where sampling its frames divides by zero."""

import functools
from typing import Any

from vllm_prune.media.errors import UnusableVideo, convert_line
from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_leading, require_source

_MODULE = "vllm.multimodal.video"
_TARGET = f"{_MODULE}:Qwen2VLVideoBackend.compute_frames_index_to_sample"
_MARK = "_vllm_prune_refuses_short_videos"


def _loader() -> Any:
    from vllm.multimodal.video import Qwen2VLVideoBackend

    return Qwen2VLVideoBackend


def _function() -> Any:
    return _loader().__dict__["compute_frames_index_to_sample"].__func__


def _verify() -> None:
    require_leading(_function(), ("cls", "source"), _TARGET)
    division = "torch.arange(0, total_frames_num, total_frames_num / n)"
    patch_size = 'temporal_patch_size = kwargs.get("temporal_patch_size", 2)'
    require_source(_function(), (patch_size, division), _TARGET)


def _install() -> None:
    original = _function()

    @functools.wraps(original)
    def compute_frames_index_to_sample(cls: Any, source: Any, *args: Any, **kwargs: Any) -> list[int]:
        fewest = kwargs.get("temporal_patch_size", 2)
        if 0 <= source.total_frames_num < fewest:
            raise UnusableVideo(
                f"the file has {source.total_frames_num} frame(s) and a video needs {fewest}",
                "send a single picture as image_url",
            )
        if source.total_frames_num < 0:  # decoders other than OpenCV, which counts them
            raise UnusableVideo("the file does not say how many frames it has", convert_line())
        return original(cls, source, *args, **kwargs)

    setattr(compute_frames_index_to_sample, _MARK, True)
    _loader().compute_frames_index_to_sample = classmethod(compute_frames_index_to_sample)


PATCH = Patch(
    name="server_short_videos",
    target=_TARGET,
    process="API server",
    trigger=_MODULE,
    why=(
        "Sampling rounds the number of frames down to a multiple of two and divides by it: a file with one frame, or a "
        "picture sent as a video, ends in ZeroDivisionError or RuntimeError, so in HTTP 500 and a closed connection."
    ),
    how="Wraps the function and raises ValueError (HTTP 400) with the number of frames before the division.",
    upstream=("https://github.com/vllm-project/vllm/pull/53844",),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_function(), _MARK),
    verify=_verify,
    install=_install,
)
