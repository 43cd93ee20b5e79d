"""Which rows a step with dense prefixes computes, and where they come from and go to. Index work only; no model.

Three numberings of rows meet here:
- batch rows: what vLLM scheduled, K + S placeholders for a video (and padding at the end);
- dense rows: the requests with a dense prefix, N1 + S rows for a video, one request after the other;
- other rows: the batch rows of all other requests, and the padding.
Layers 0..L compute other rows and dense rows, in this order, in one tensor.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch

from vllm_prune.question import question_places
from vllm_prune.serving.worker.medium_info import MediumInfo


@dataclass(frozen=True, eq=False)
class DenseVideo:
    """A video of this step whose tokens the question is to choose."""

    features: torch.Tensor
    """[n, (1 + levels) * C]: embeddings, and what the encoder adds to them behind the decoder's first layers; of the
    video's N1 tokens and of the S rows between them that nobody may drop, n = N1 + S."""
    slots: torch.Tensor
    """Each row's slot in the video's layout, [n]."""
    groups: torch.Tensor
    """The group in which each token competes, [n]."""
    start: int
    """The video's first position."""
    info: MediumInfo
    prompt: Sequence[int]
    """Token ids of the whole prompt."""
    batch_row: int = -1
    """Its first placeholder's batch row."""
    num_rows: int | None = None
    """Its placeholders in this step, where it is a part of a video: all above is of this part then."""

    @property
    def batch_end(self) -> int:
        """Behind its last placeholder's batch row."""
        return self.batch_row + (self.info.counts.rows if self.num_rows is None else self.num_rows)

    @property
    def positions(self) -> torch.Tensor:
        """M-RoPE positions [3, n]."""
        return (self.info.offsets(self.slots) + self.start).T

    def split(self, left: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of the rows `left` [m] compete, and which nobody may drop: increasing indices [m - S] and [S]."""
        return self.info.split(self.slots[left])

    def features_at(self, level: int, width: int) -> torch.Tensor:
        """Embeddings [n, width] (level 0), or what is added to the rows behind layer `level` - 1."""
        return self.features[:, level * width : (level + 1) * width]

    def at_row(self, row: int) -> DenseVideo:
        """The same video, placed."""
        return replace(self, batch_row=row)


@dataclass(frozen=True)
class Batch:
    """What vLLM scheduled, as lists on the CPU."""

    query_start: list[int]
    """First batch row of every request, and the end of the last one's."""
    seq_lens: list[int]
    """Tokens of every request after this step."""


@dataclass(frozen=True, eq=False)
class VideoRows:
    """Where a video's rows are among the dense rows of its request."""

    video: DenseVideo
    start: int
    question: torch.Tensor
    """Rows of the text that asks about it, relative to the request's first dense row, [Q]: all text behind it in the
    step, or what a learned selector reads (`question_places`)."""

    @property
    def end(self) -> int:
        """Behind its last row."""
        return self.start + self.video.info.counts.carried_rows


@dataclass(frozen=True)
class DenseRequest:
    """A request with a dense prefix in this step."""

    index: int
    """Its place in the batch."""
    context: int
    """Tokens computed before this step."""
    batch_start: int
    batch_end: int
    length: int
    """Its dense rows."""
    videos: list[VideoRows]

    @property
    def num_leading(self) -> int:
        """Its rows before the first video."""
        return self.videos[0].start


@dataclass(frozen=True)
class LongPart:
    """A request of whose dense prefix this step computes a part: what it has in the batch is all of that prefix."""

    index: int
    """Its place in the batch."""
    context: int
    """Tokens computed before this step."""
    batch_start: int
    batch_end: int
    videos: list[DenseVideo]
    is_media: torch.Tensor
    """Whether its batch rows are placeholders, [n] bool."""


@dataclass(frozen=True)
class DenseStep:
    """All of it."""

    requests: list[DenseRequest]
    other_rows: torch.Tensor
    """Batch rows [n] of everything else."""
    batch: Batch
    num_batch_rows: int
    long: list[LongPart] = field(default_factory=list)
    """Requests whose dense prefix stretches over several steps; their batch rows are in no other numbering."""

    @property
    def num_padding(self) -> int:
        """Of `other_rows`, those at the end that belong to no request."""
        return self.num_batch_rows - self.batch.query_start[-1]

    @property
    def dense_batch_rows(self) -> torch.Tensor:
        """Batch rows of the requests with a dense prefix, in order."""
        return _ranges((request.batch_start, request.batch_end) for request in self.requests)

    @property
    def leading_batch_rows(self) -> torch.Tensor:
        """Batch rows of these requests before their first videos, in order."""
        return _ranges((r.batch_start, r.batch_start + r.num_leading) for r in self.requests)


def _ranges(bounds: Iterable[tuple[int, int]]) -> torch.Tensor:
    return torch.cat([torch.arange(0), *(torch.arange(start, end) for start, end in bounds)])


def plan_step(videos: list[DenseVideo], is_media: torch.Tensor, batch: Batch, num_batch_rows: int) -> DenseStep:
    """Groups the videos by request and numbers the rows.

    Args:
        videos: In the order of their batch rows.
        is_media: Whether a batch row is a placeholder of an image or a video, [n] bool on the CPU.
        batch: What was scheduled.
        num_batch_rows: Rows of the batch with padding.
    """
    by_request: dict[int, list[DenseVideo]] = {}
    for video in videos:
        index = bisect.bisect_right(batch.query_start, video.batch_row) - 1
        by_request.setdefault(index, []).append(video)
    long = [
        _plan_part(index, own, is_media, batch)
        for index, own in by_request.items()
        if any(video.num_rows is not None for video in own)
    ]
    in_parts = {part.index for part in long}
    requests = [
        _plan_request(index, own, is_media, batch) for index, own in by_request.items() if index not in in_parts
    ]
    other = torch.ones(num_batch_rows, dtype=torch.bool)
    bounds = [(request.batch_start, request.batch_end) for request in requests]
    for start, end in bounds + [(part.batch_start, part.batch_end) for part in long]:
        other[start:end] = False
    return DenseStep(requests, other.nonzero().squeeze(1), batch, num_batch_rows, long)


def _plan_part(index: int, videos: list[DenseVideo], is_media: torch.Tensor, batch: Batch) -> LongPart:
    start, end = batch.query_start[index], batch.query_start[index + 1]
    return LongPart(index, batch.seq_lens[index] - (end - start), start, end, videos, is_media[start:end])


def _plan_request(index: int, videos: list[DenseVideo], is_media: torch.Tensor, batch: Batch) -> DenseRequest:
    start, end = batch.query_start[index], batch.query_start[index + 1]
    text = (~is_media[start:end]).nonzero().squeeze(1)
    grown = 0
    rows: list[VideoRows] = []
    ends: list[int] = []
    for video in videos:
        counts = video.info.counts
        first = video.batch_row - start + grown
        ends.append(video.batch_row - start + counts.rows)
        grown += counts.entering - counts.kept
        rows.append(VideoRows(video, first, text))
    context = batch.seq_lens[index] - (end - start)
    placed = [
        replace(row, question=_dense_question(_question(row.video, text, own_end, context), videos, start))
        for row, own_end in zip(rows, ends, strict=True)
    ]
    return DenseRequest(index, context, start, end, end - start + grown, placed)


def _question(video: DenseVideo, text: torch.Tensor, end: int, context: int) -> torch.Tensor:
    """Of a request's text rows `text` in the batch, those that ask about a video that ends before row `end`."""
    behind = text[text >= end]
    if not video.info.config.needs_selector:
        return behind
    assert video.info.turn is not None  # the processor refuses such requests of models without
    return torch.tensor(question_places(video.prompt, (behind + context).tolist(), video.info.turn)) - context


def _dense_question(text: torch.Tensor, videos: list[DenseVideo], request_start: int) -> torch.Tensor:
    """Dense rows of the request's text rows `text`: every video before a row pushes it back by what it has more."""
    shift = torch.zeros_like(text)
    for video in videos:
        counts = video.info.counts
        shift += (text >= video.batch_row - request_start).long() * (counts.entering - counts.kept)
    return text + shift
