"""The dense rows of a step while layers drop some: which are left, where a request's and a video's rows are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vllm_prune.serving.dense.step import DenseRequest, DenseStep, VideoRows


@dataclass(eq=False)
class DenseRows:
    """Dense rows that are left, numbered anew after every drop.

    `alive` [n] holds their original numbers: request after request, each in order.
    """

    step: DenseStep
    alive: torch.Tensor
    lengths: list[int]

    @classmethod
    def of(cls, step: DenseStep) -> DenseRows:
        """All dense rows of `step`."""
        lengths = [request.length for request in step.requests]
        return cls(step, torch.arange(sum(lengths)), lengths)

    def requests(self) -> Iterator[tuple[DenseRequest, int, int, int]]:
        """Every request, its first original row, and start and end of the rows that it has left."""
        origin = start = 0
        for request, length in zip(self.step.requests, self.lengths, strict=True):
            yield request, origin, start, start + length
            origin += request.length
            start += length

    def leading(self) -> torch.Tensor:
        """Original rows [n] before the first video of each request."""
        return torch.cat([torch.arange(origin, origin + r.num_leading) for r, origin, _, _ in self.requests()])

    def select(self, kept: torch.Tensor) -> DenseRows:
        """Only the rows `kept` [m] (increasing, of the current numbering)."""
        bounds = [end for _, _, _, end in self.requests()]
        counts = torch.searchsorted(kept, torch.tensor(bounds)).diff(prepend=torch.zeros(1, dtype=torch.long))
        return DenseRows(self.step, self.alive[kept], counts.tolist())

    def video_range(self, video: VideoRows, origin: int) -> tuple[int, int]:
        """Start and end of the rows that a video of the request at `origin` has left."""
        bounds = torch.searchsorted(self.alive, torch.tensor([origin + video.start, origin + video.end]))
        return int(bounds[0]), int(bounds[1])
