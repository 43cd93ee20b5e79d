"""How many videos, or frames of one, go through the vision encoder in one call.

vLLM bounds a call by the encoder tokens of a step, and counts those that a video keeps. What a call costs follows the
tokens before pruning: a V2 runner would encode up to a preset's whole reduction more at once than it has memory for.
No layer of these encoders looks beyond a frame, so that a video longer than a call goes through in groups of frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from vllm_prune.serving.wire.request_spec import VideoSpec

Pruned = TypeVar("Pruned")


def encoder_batches(num_tokens: Sequence[int], limit: int) -> Iterator[slice]:
    """Consecutive videos whose tokens before pruning add up to at most `limit`; one that has more goes alone.

    >>> [(batch.start, batch.stop) for batch in encoder_batches([5, 5, 9, 30, 1], 10)]
    [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    start, total = 0, 0
    for i, count in enumerate(num_tokens):
        if i > start and total + count > limit:
            yield slice(start, i)
            start, total = i, 0
        total += count
    if num_tokens:
        yield slice(start, len(num_tokens))


def frame_groups(num_frames: int, frame_tokens: int, limit: int) -> Iterator[slice]:
    """Consecutive frames of a video with at most `limit` tokens together; a frame that has more goes alone.

    >>> [(group.start, group.stop) for group in frame_groups(5, 4, 9)]
    [(0, 2), (2, 4), (4, 5)]
    """
    size = max(limit // frame_tokens, 1)
    for start in range(0, num_frames, size):
        yield slice(start, min(start + size, num_frames))


def in_one_place(parts: Iterable[tuple[int, torch.Tensor]], num_rows: int) -> torch.Tensor:
    """Features [num_rows, C] of which `parts` [n, C] are encoded one after the other, with the first row of each.

    A later part is written over the rows of earlier ones.
    """
    whole: torch.Tensor | None = None
    for first, part in parts:
        if whole is None:
            whole = part.new_empty(num_rows, part.shape[1])
        whole[first : first + len(part)] = part
        del part  # before the next one is encoded
    assert whole is not None
    return whole


def prune_each(
    prune: Callable[[torch.Tensor, VideoSpec, torch.Tensor | None], Pruned],
    encoded: Iterator[tuple[torch.Tensor, torch.Tensor | None]],
    specs: Sequence[VideoSpec],
) -> list[Pruned | torch.Tensor]:
    """What `prune` leaves of each medium, of whose features no other's exist while it is encoded.

    Args:
        prune: From features, what the processor decided and the cells that were encoded (None: all).
        encoded: Features and cells of the media, which are encoded as they are asked for.
        specs: Of the media; empty: their features are left as they are.
    """
    left: list[Pruned | torch.Tensor] = []
    for features, cells in encoded:
        left.append(prune(features, specs[len(left)], cells) if specs else features)
        del features
    return left
