"""The dense rows of a step while layers drop some: which are left, where a request's and a video's rows are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vllm_prune.serving.worker.dense.step import DenseRequest, DenseStep, VideoRows


@dataclass(frozen=True)
class LiveRequest:
    """A request and where its dense rows are."""

    request: DenseRequest
    origin: int
    """Its first row, as numbered at first."""
    start: int
    """Its first row, as numbered now."""
    end: int
    """Behind its last row, as numbered now."""


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

    def requests(self) -> Iterator[LiveRequest]:
        """Every request, in order."""
        origin = start = 0
        for request, length in zip(self.step.requests, self.lengths, strict=True):
            yield LiveRequest(request, origin, start, start + length)
            origin += request.length
            start += length

    def leading(self) -> torch.Tensor:
        """Original rows [n] before the first video of each request."""
        ranges = [torch.arange(live.origin, live.origin + live.request.num_leading) for live in self.requests()]
        return torch.cat([torch.arange(0), *ranges])

    def select(self, kept: torch.Tensor) -> DenseRows:
        """Only the rows `kept` [m] (increasing, of the current numbering)."""
        bounds = torch.tensor([live.end for live in self.requests()])
        counts = torch.searchsorted(kept, bounds).diff(prepend=torch.zeros(1, dtype=torch.long))
        return DenseRows(self.step, self.alive[kept], counts.tolist())

    def video_range(self, live: LiveRequest, video: VideoRows) -> tuple[int, int]:
        """Start and end of the rows that a video of a request has left."""
        bounds = torch.searchsorted(self.alive, torch.tensor([video.start, video.end]) + live.origin)
        return int(bounds[0]), int(bounds[1])

    def rows_left(self, live: LiveRequest, video: VideoRows) -> torch.Tensor:
        """Which of a video's N1 + S rows are left, [n], increasing."""
        first, last = self.video_range(live, video)
        return self.alive[first:last] - live.origin - video.start

    def question(self, live: LiveRequest, video: VideoRows) -> torch.Tensor:
        """Rows [Q] of the text that asks about a video, as numbered now."""
        return torch.searchsorted(self.alive, live.origin + video.question)
