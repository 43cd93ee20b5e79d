"""A dense prefix of one request that stretches over several steps.

Every step brings some of its rows, and they run through layers 0..L at once: what later rows attend to, their keys and
values, stays from step to step, and so do their hidden states behind layer L. With the last rows the question has been
there, and all goes on as in one step (`long_finish.py`).
"""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from vllm.model_executor.layers.attention import Attention

from vllm_prune.serving.wire.long_spans import LongSpan
from vllm_prune.serving.worker.dense.attention import taken_over
from vllm_prune.serving.worker.dense.decoder_view import DecoderView
from vllm_prune.serving.worker.dense.gather import request_rows
from vllm_prune.serving.worker.dense.scratch import ScratchCaches
from vllm_prune.serving.worker.dense.step import Batch, DenseRequest, DenseStep, DenseVideo, LongPart, plan_step
from vllm_prune.serving.worker.dense.step_run import Entering


class LongPrefix:
    """What is kept of it between steps."""

    def __init__(self, span: LongSpan, decoder: DecoderView, like: torch.Tensor) -> None:
        """`like`: any embeddings [n, C] of the model."""
        self.span, self._decoder = span, decoder
        rows, width = span.rows, like.shape[1]
        attention = [decoder.attention[index] for index in range(span.layer + 1)]  # no layer keeps a state
        self.keys = [like.new_empty(rows, each.num_kv_heads, each.head_size) for each in attention]
        """Of layers 0..L, [rows, G, D]."""
        self.values = [torch.empty_like(key) for key in self.keys]
        self.query = like.new_empty(rows, attention[-1].num_heads, attention[-1].head_size)
        """Of layer L, [rows, H, D]."""
        self.hidden, self.residual = (like.new_empty(rows, width) for _ in range(2))
        """Behind layer L, [rows, C]."""
        self.positions = torch.empty(3, rows, dtype=torch.long, device=like.device)
        self.computed, self._done = span.start, 0
        self._videos: list[DenseVideo] = []
        self._is_media: list[torch.Tensor] = []

    @property
    def num_bytes(self) -> int:
        """That its tensors take."""
        tensors = (*self.keys, *self.values, self.query, self.hidden, self.residual, self.positions)
        return sum(tensor.nbytes for tensor in tensors)

    @property
    def is_complete(self) -> bool:
        """Whether all of its rows are there."""
        return self._done == self.span.rows

    def add(self, part: LongPart, entering: Entering, scratch: ScratchCaches, most_rows: int) -> None:
        """Runs the rows of the next part through layers 0..L, `most_rows` at a time."""
        if part.context != self.computed:
            raise RuntimeError(
                f"a dense prefix goes on at token {part.context} of its prompt, but {self.computed} are computed; "
                f"report it to vllm-prune"
            )
        width = entering.embeds.shape[1]

        def gather(batch: torch.Tensor, level: int) -> torch.Tensor:
            of_video = functools.partial(DenseVideo.features_at, level=level, width=width)
            return torch.cat(request_rows(batch, part.batch_start, part.batch_end, part.videos, of_video))

        hidden = self._decoder.enter(gather(entering.embeds, 0))
        levels = [gather(rows, level) for level, rows in enumerate(entering.levels, start=1)]
        device, start = entering.positions.device, self._done
        positions = request_rows(
            entering.positions,
            part.batch_start,
            part.batch_end,
            part.videos,
            lambda video: video.positions.to(device),
            dim=1,
        )
        self.positions[:, start : start + len(hidden)] = torch.cat(positions, 1)
        scratch.lay_out([start + len(hidden)])
        for first in range(0, len(hidden), most_rows):
            rows = slice(first, first + most_rows)
            self._run(hidden[rows], [level[rows] for level in levels], scratch)
        self._remember(part)

    def _run(self, hidden: torch.Tensor, levels: list[torch.Tensor], scratch: ScratchCaches) -> None:
        """The next rows [n, C] through layers 0..L."""
        rows = slice(self._done, self._done + len(hidden))
        residual: torch.Tensor | None = None
        for index in range(self.span.layer + 1):
            attention = self._decoder.attention[index]
            with taken_over(attention, functools.partial(self._attend, index, rows, scratch)):
                hidden, residual = self._decoder.run_layer(index, self.positions[:, rows], hidden, residual)
            if index < len(levels):
                hidden = hidden + levels[index]
        assert residual is not None
        self.hidden[rows], self.residual[rows] = hidden, residual
        self._done = rows.stop

    def _attend(
        self, index: int, rows: slice, scratch: ScratchCaches, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        attention: Attention = self._decoder.attention[index]
        heads, dim = attention.num_kv_heads, attention.head_size
        query = q.unflatten(1, (attention.num_heads, dim)).contiguous()
        key, value = (x.unflatten(1, (heads, dim)).contiguous() for x in (k, v))
        self.keys[index][rows], self.values[index][rows] = key, value
        if index == self.span.layer:
            self.query[rows] = query
        if rows.start:
            scratch.put(attention, self.keys[index][: rows.start], self.values[index][: rows.start])
        return scratch.attend(attention, query, key, value, [(rows.start, rows.stop)])

    def _remember(self, part: LongPart) -> None:
        for video in part.videos:
            row = part.context - self.span.start + video.batch_row - part.batch_start
            known = self._videos[-1] if self._videos else None
            if known is not None and known.batch_end == row and known.start == video.start:
                tags = {name: torch.cat((getattr(known, name), getattr(video, name))) for name in ("slots", "groups")}
                self._videos[-1] = replace(known, **tags, num_rows=row + _num_rows(video) - known.batch_row)
            else:
                # What it brought into the first layer is through.
                self._videos.append(
                    replace(video, features=video.features[:0], batch_row=row, num_rows=_num_rows(video))
                )
        self._is_media.append(part.is_media)
        self.computed += part.batch_end - part.batch_start

    def whole(self, index: int) -> DenseStep:
        """The complete prefix as a step of its own, whose batch rows are its prompt tokens.

        `index`: the request's place in the batch.
        """
        is_media = torch.cat(self._is_media)
        length, context = len(is_media), self.span.start
        step = plan_step(
            [replace(video, num_rows=None) for video in self._videos],
            is_media,
            Batch([0, length], [context + length]),
            length,
        )
        request: DenseRequest = replace(step.requests[0], index=index)
        return replace(step, requests=[request])


def _num_rows(video: DenseVideo) -> int:
    return video.batch_end - video.batch_row
