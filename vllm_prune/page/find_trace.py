"""Finds what a server traced of one request."""

from __future__ import annotations

import math
from pathlib import Path

from vllm_prune.budget_images import config_of_image, total_share
from vllm_prune.config import PruneConfig
from vllm_prune.show.errors import ShowError
from vllm_prune.show.trace_file import TracedVideo, read_trace
from vllm_prune.trace_key import checked, file_name


def find_trace(folder: str | Path, key: object, config: PruneConfig, *, of_picture: bool = False) -> TracedVideo:
    """The only video, or picture, of the request that gave its trace this key.

    Args:
        folder: Where the server writes traces.
        key: The request's `trace_key`.
        config: The request's configuration.
        of_picture: What was asked about.

    Raises:
        PruneConfigError: `key` has another form.
        ShowError: There is none, or not of one video with this configuration.
    """
    path = Path(folder) / file_name(checked(key))
    if not path.is_file():
        raise ShowError(
            "no trace of this request: traces are written on the machine of the first worker, and none where nothing "
            "is pruned"
        )
    videos = read_trace(path)
    if len(videos) != 1 or videos[0].config != _own_config(config, videos[0], of_picture):
        kind = "picture" if of_picture else "video"
        raise ShowError(f"the trace of this request is not of one {kind} with this configuration; ask again")
    return videos[0]


def _own_config(config: PruneConfig, traced: TracedVideo, of_picture: bool) -> PruneConfig | None:
    """By which the only medium of a request was pruned; None of a picture that was not."""
    if not of_picture:
        return config.of_videos
    if config.image is None:
        return None
    size = math.prod(traced.grid)
    return config_of_image(config.image, size, total_share(config.image, [size]))
