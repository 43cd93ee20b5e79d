"""What options for loading videos may say where frames follow the kept tokens. Lives in the API server."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vllm.multimodal.video import VIDEO_LOADER_REGISTRY

from vllm_prune.config import PruneConfig, PruneConfigError, brief

_WHERE = "media_io_kwargs.video"
_LEAST = {"num_frames": -1, "min_frames": 0, "max_frames": 1}
_RATES = ("num_frames", "fps")
_DECODER = "opencv"


def check_options(
    config: PruneConfig,
    server: PruneConfig,
    given: Mapping[str, Any],
    default: Mapping[str, Any],
    options: Mapping[str, Any],
) -> None:
    """Refuses options that contradict `frames`, or are none.

    Args:
        config: The request's, resolved, with `frames`.
        server: The server's.
        given: Options for loading videos, the request's among them.
        default: Those of the operator.
        options: The request's `mm_processor_kwargs`.

    Raises:
        PruneConfigError: Two of them say how many frames are sampled, a number is none, or a decoder was chosen that
            cannot be asked.
    """
    _check_numbers(given)
    _check_rates(config, server, given, default, options)
    if (decoder := given.get("backend", _DECODER)) != _DECODER:
        raise PruneConfigError(
            f"frames: frames follow the kept tokens with the decoder {_DECODER!r} only, and {_WHERE}."
            f"backend={brief(decoder)}; leave one of the two out"
        )
    loader = given.get("video_backend")
    if loader and (not isinstance(loader, str) or loader not in VIDEO_LOADER_REGISTRY.name2class):
        raise PruneConfigError(f"{_WHERE}.video_backend={brief(loader)}: vLLM has no such loader; leave it out")


def _check_numbers(given: Mapping[str, Any]) -> None:
    """Refuses what cannot be counted with: vLLM takes these options as they come."""
    for name, least in _LEAST.items():
        value = given.get(name, least)
        if type(value) is not int or value < least:
            raise PruneConfigError(f"{_WHERE}.{name}={brief(value)}: must be an integer of {least} or more")
    rate = given.get("fps", -1)
    if type(rate) not in (int, float) or not -1 <= rate < math.inf:
        raise PruneConfigError(f"{_WHERE}.fps={brief(rate)}: must be a number above 0, or -1 for none")


def _check_rates(
    config: PruneConfig,
    server: PruneConfig,
    given: Mapping[str, Any],
    default: Mapping[str, Any],
    options: Mapping[str, Any],
) -> None:
    """Refuses a request with `frames` of its own and another number of them."""
    if config.frames == server.frames:
        return
    assert config.frames is not None
    scoped: Any = options.get("videos_kwargs") or {}
    for name in _RATES:
        for where, values, known in (
            (_WHERE, given, default),
            ("mm_processor_kwargs", {**options, **scoped}, {}),
        ):
            if values.get(name) is not None and values.get(name) != known.get(name):
                raise PruneConfigError(
                    f"frames.tokens={config.frames.tokens} and {where}.{name}={brief(values[name])}: both say how many "
                    f"frames are sampled; give one of the two"
                )
