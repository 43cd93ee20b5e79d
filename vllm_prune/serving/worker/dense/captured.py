"""Hidden states between the layers of a step with dense prefixes, of the rows that are left at its end."""

from __future__ import annotations

from collections.abc import Collection

import torch

from vllm_prune.serving.worker.dense.rows import DenseRows
from vllm_prune.serving.worker.upload import upload


class CapturedLayers:
    """What stands before chosen layers, by batch row once the step has run."""

    def __init__(self, layers: Collection[int]) -> None:
        """`layers`: indices; 0 is what enters the first."""
        self._layers = frozenset(layers)
        self.found: dict[int, torch.Tensor] = {}
        """Hidden states [batch rows, C] before each layer."""
        self.slots: list[tuple[int, torch.Tensor]] = []
        """First batch row of every video of which tokens were chosen, and its rows' slots [K + S]."""
        self._dense: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def take(self, index: int, hidden: torch.Tensor, residual: torch.Tensor | None, alive: torch.Tensor | None) -> None:
        """What enters layer `index`.

        Args:
            index: Of the layer.
            hidden: [n, C].
            residual: [n, C]; None before the first layer.
            alive: Original numbers of the dense rows that are left, the last of the n; None: the rows are the batch's.
        """
        if index not in self._layers:
            return
        rows = hidden.clone() if residual is None else hidden + residual
        if alive is None:
            self.found[index] = rows
        else:
            self._dense[index] = rows, alive

    def return_to_batch(self, left: DenseRows, num_other: int, order: torch.Tensor) -> None:
        """All pruning layers are behind.

        Args:
            left: The dense rows that are left.
            num_other: Rows before them that belong to other requests.
            order: Which of all these rows each batch row is.
        """
        for index, (rows, alive) in self._dense.items():
            kept = torch.cat((torch.arange(num_other), num_other + torch.searchsorted(alive, left.alive)))
            self.found[index] = rows[upload(kept, rows.device)][order]
        for live in left.requests():
            for video in live.request.videos:
                slots = video.video.slots
                self.slots.append((video.video.batch_row, slots[upload(left.rows_left(live, video), slots.device)]))
