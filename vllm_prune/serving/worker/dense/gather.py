"""Rows of a request with a dense prefix: what the batch has of its text, what its videos have of themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from vllm_prune.serving.worker.dense.step import DenseVideo


def request_rows(
    batch: torch.Tensor,
    start: int,
    end: int,
    videos: Iterable[DenseVideo],
    of_video: Callable[[DenseVideo], torch.Tensor],
    dim: int = 0,
) -> list[torch.Tensor]:
    """The dense rows of a request at batch rows start <= i < end, in order, as parts to be put together along `dim`.

    Args:
        batch: What belongs to batch rows, along `dim`.
        start: First batch row.
        end: Behind its last one.
        videos: Its videos, in order.
        of_video: What belongs to a video's rows.
        dim: See above.
    """
    found, row = [], start
    for video in videos:
        found += [batch.narrow(dim, row, video.batch_row - row), of_video(video)]
        row = video.batch_end
    found.append(batch.narrow(dim, row, end - row))
    return found
