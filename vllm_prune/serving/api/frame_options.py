"""What options for loading videos may say where frames follow the kept tokens. Lives in the API server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_prune.config import PruneConfig, PruneConfigError, brief
from vllm_prune.serving.wire.video_options import WHERE, check_video_options

_RATES = ("num_frames", "fps")


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
        PruneConfigError: Two of them say how many frames are sampled, or one is refused by `check_video_options`.
    """
    check_video_options(given)
    if config.frames == server.frames:
        return
    assert config.frames is not None
    scoped: Any = options.get("videos_kwargs") or {}
    for name in _RATES:
        for where, values, known in (
            (WHERE, given, default),
            ("mm_processor_kwargs", {**options, **scoped}, {}),
        ):
            if values.get(name) is not None and values.get(name) != known.get(name):
                raise PruneConfigError(
                    f"frames.tokens={config.frames.tokens} and {where}.{name}={brief(values[name])}: both say how many "
                    f"frames are sampled; give one of the two"
                )
