"""Finds what a server traced of one request."""

from __future__ import annotations

from pathlib import Path

from vllm_prune.config import PruneConfig
from vllm_prune.show.errors import ShowError
from vllm_prune.show.trace_file import TracedVideo, read_trace
from vllm_prune.trace_key import checked, file_name


def find_trace(folder: str | Path, key: object, config: PruneConfig) -> TracedVideo:
    """The only video of the request that gave its trace this key.

    Args:
        folder: Where the server writes traces.
        key: The request's `trace_key`.
        config: The request's configuration.

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
    if len(videos) != 1 or videos[0].config != config:
        raise ShowError("the trace of this request is not of one video with this configuration; ask again")
    return videos[0]
