"""Finds what a server traced of one request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vllm_prune.config import PruneConfig
from vllm_prune.show.errors import ShowError
from vllm_prune.show.trace_file import TracedVideo, read_prompt, read_trace

CLOCK_STEP = 0.05
"""Seconds by which a file's time may lag behind the clock that `time.time` reads."""


def find_trace(folder: str | Path, config: PruneConfig, prompt: Sequence[int], since: float) -> TracedVideo:
    """The only video of the request with this prompt and configuration that was traced at `since` or later.

    Where the question chooses nothing, a trace knows no prompt: then the configuration and the time must do.

    Args:
        folder: Where the server writes traces.
        config: The request's configuration.
        prompt: Its token ids.
        since: In seconds since the epoch.

    Raises:
        ShowError: There is none, or there are several that differ.
    """
    found = [video for path in _newest(folder, since) for video in _matching(path, config, prompt)]
    if not found:
        raise ShowError(
            f"no trace of this request in {str(folder)!r}: traces are written on the machine of the first worker, and "
            "none where nothing is pruned"
        )
    if any(not _same(found[0], other) for other in found[1:]):
        raise ShowError("several requests with this configuration were traced at once; ask again")
    return found[0]


def _newest(folder: str | Path, since: float) -> Iterator[Path]:
    """Traces from `since` on. One that is deleted meanwhile is left out."""
    for path in sorted(Path(folder).glob("*.npz"), reverse=True):
        try:
            if path.stat().st_mtime >= since - CLOCK_STEP:
                yield path
        except FileNotFoundError:
            continue


def _matching(path: Path, config: PruneConfig, prompt: Sequence[int]) -> list[TracedVideo]:
    try:
        videos, written = read_trace(path), read_prompt(path)
    except ShowError:  # another request's, still being written
        return []
    if len(videos) != 1 or videos[0].config != config:
        return []
    return videos if len(written) == 0 or np.array_equal(written, prompt) else []


def _same(one: TracedVideo, other: TracedVideo) -> bool:
    pairs = ((one.slot, other.slot), (one.anchor, other.anchor), (one.kept, other.kept))
    return one.grid == other.grid and all(np.array_equal(a, b) for a, b in pairs)
