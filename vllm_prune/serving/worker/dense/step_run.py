"""Runs the decoder in a step that prefills videos whose tokens the question chooses.

Layers 0..L run once over the other requests' rows and the dense rows together. After a pruning layer the videos' rows
that were not chosen are gone; after the last one the rows take their places in the batch, the keys and values of layers
0..L go into the paged cache for the kept rows alone, and the remaining layers are the normal pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vllm_prune.serving.worker.dense.attention import taken_over
from vllm_prune.serving.worker.dense.captured import CapturedLayers
from vllm_prune.serving.worker.dense.dense_layers import DenseLayers, Workshop
from vllm_prune.serving.worker.dense.gather import request_rows
from vllm_prune.serving.worker.dense.step import DenseStep, DenseVideo
from vllm_prune.serving.worker.upload import upload


@dataclass(frozen=True)
class Entering:
    """What goes into the decoder in a step."""

    embeds: torch.Tensor
    """[batch rows, C]; those of the videos to be pruned are not looked at."""
    positions: torch.Tensor
    """[3, batch rows]; likewise."""
    levels: list[torch.Tensor]
    """For each of the first layers with them, [batch rows, C] that is added behind it."""


class StepRun(DenseLayers):
    """The state of one step."""

    def __init__(
        self, step: DenseStep, workshop: Workshop, entering: Entering, captured: CapturedLayers | None = None
    ) -> None:
        self._captured = captured
        embeds, positions = entering.embeds, entering.positions
        self._batch_positions = positions
        other = upload(step.other_rows, embeds.device)

        def gather(batch: torch.Tensor, of_video: Callable[[DenseVideo], torch.Tensor], dim: int = 0) -> torch.Tensor:
            found = [batch.index_select(dim, other)]
            for request in step.requests:
                videos = [rows.video for rows in request.videos]
                found += request_rows(batch, request.batch_start, request.batch_end, videos, of_video, dim)
            return torch.cat(found, dim)

        def features(level: int) -> Callable[[DenseVideo], torch.Tensor]:
            return lambda video: video.features_at(level, embeds.shape[1])

        hidden = workshop.decoder.enter(gather(embeds, features(0)))
        placed = gather(positions, lambda video: video.positions.to(positions.device), dim=1)
        super().__init__(step, workshop, placed, hidden)
        self._level_rows = [gather(rows, features(level)) for level, rows in enumerate(entering.levels, start=1)]
        self._present: torch.Tensor | None = None

    def run(self) -> torch.Tensor:
        """Hidden states [batch rows, C]; zeros where rows are computed elsewhere."""
        last = self._dropper.last_layer
        if last < 0:
            self._return_to_batch()
        for index in range(len(self._decoder.layers)):
            if self._captured is not None:
                alive = self._rows.alive if index <= last else None
                self._captured.take(index, self._hidden, self._residual, alive)
            if index <= last:
                self._run_dense_layer(index)
            else:
                self._run_layer(index)
            if index == last:
                self._return_to_batch()
        assert self._residual is not None
        hidden = self._decoder.leave(self._hidden, self._residual)
        if self._present is None:
            return hidden
        batch = hidden.new_zeros(self._step.num_batch_rows, hidden.shape[1])
        batch[self._present] = hidden
        return batch

    def _run_layer(self, index: int) -> None:
        """A layer above all choices, over the rows of the batch that are there."""
        if self._present is None:
            super()._run_layer(index)
        else:
            attention = self._decoder.attention[index]
            with taken_over(attention, functools.partial(self._attend_among, self._present, attention.forward)):
                super()._run_layer(index)
        if self._level_rows:
            self._hidden = self._hidden + self._level_rows.pop(0)

    def _attend_among(
        self, present: torch.Tensor, attend_paged: Callable[..., torch.Tensor], *inputs: torch.Tensor
    ) -> torch.Tensor:
        """vLLM's own attention over the batch, in which only the rows `present` are something."""
        batch = [rows.new_zeros(self._step.num_batch_rows, rows.shape[1]) for rows in inputs]
        for into, rows in zip(batch, inputs, strict=True):
            into[present] = rows
        return attend_paged(*batch)[present]

    def _return_to_batch(self) -> None:
        """Stage 3: kept rows to their batch rows, their keys and values to the paged cache."""
        dense_rows = upload(self._step.dense_batch_rows, self._hidden.device)
        rows = torch.cat((self._other, dense_rows))
        self._write_cache(dense_rows)
        order = rows.argsort()
        self._hidden = self._hidden[order]
        if self._residual is not None:
            self._residual = self._residual[order]
        self._level_rows = [level[order] for level in self._level_rows]
        if self._captured is not None:
            self._captured.return_to_batch(self._rows, self._num_other, order)
        positions = self._batch_positions.clone()
        positions[:, rows] = self._positions
        if self._step.long:
            self._present = rows[order]
            positions = positions[:, self._present]
        self._positions = positions
