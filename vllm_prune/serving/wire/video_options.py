"""Options for loading videos (vLLM's `media_io_kwargs.video`) that there may be where frames follow the kept tokens.

The operator's are checked when the configuration is made, and a request's when it comes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vllm.multimodal.video import VIDEO_LOADER_REGISTRY

from vllm_prune.config import PruneConfigError, brief

WHERE = "media_io_kwargs.video"
_LEAST = {"num_frames": -1, "min_frames": 0, "max_frames": 1, "temporal_patch_size": 1}
_DECODER = "opencv"


def check_video_options(given: Mapping[str, Any]) -> None:
    """Refuses what cannot be counted with, as vLLM takes these options as they come, and a decoder that is not asked.

    Raises:
        PruneConfigError: Some of the options `given` are such.
    """
    for name, least in _LEAST.items():
        value = given.get(name, least)
        if type(value) is not int or value < least:
            raise PruneConfigError(f"{WHERE}.{name}={brief(value)}: must be an integer of {least} or more")
    rate = given.get("fps", -1)
    if type(rate) not in (int, float) or not -1 <= rate < math.inf:
        raise PruneConfigError(f"{WHERE}.fps={brief(rate)}: must be a number above 0, or -1 for none")
    if (decoder := given.get("backend", _DECODER)) != _DECODER:
        raise PruneConfigError(
            f"frames: frames follow the kept tokens with the decoder {_DECODER!r} only, and {WHERE}.backend="
            f"{brief(decoder)}; leave one of the two out"
        )
    loader = given.get("video_backend")
    if loader and (not isinstance(loader, str) or loader not in VIDEO_LOADER_REGISTRY.name2class):
        raise PruneConfigError(f"{WHERE}.video_backend={brief(loader)}: vLLM has no such loader; leave it out")
