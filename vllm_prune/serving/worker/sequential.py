"""Decoders with positions in one dimension, which take no part in what vLLM does for positions in three.

vLLM's runners let a model say each prompt's positions where it has M-RoPE. A pruned prompt needs that as much without:
its rows keep the positions that they have unpruned, and what is generated goes on behind all of them. So the
configuration hook turns M-RoPE's bookkeeping on (`wire/positions.py`), in which all three positions of a row are
equal, and here the decoder gets one of them.
"""

from __future__ import annotations

from typing import Any

import torch

from vllm_prune.hook import Hooked, hook
from vllm_prune.serving.worker.dense.decoder_view import DecoderView


class SequentialPositions(Hooked):
    """Put right before a vLLM model class, behind the other mixins."""

    @hook
    def forward(self, input_ids: torch.Tensor | None, positions: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """vLLM's own, with positions [n] of [3, n]."""
        return super().forward(input_ids, one_dimensional(positions), *args, **kwargs)  # type: ignore[misc]


class SequentialView(DecoderView):
    """The layers of such a decoder."""

    def run_layer(
        self, index: int, positions: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return super().run_layer(index, one_dimensional(positions), hidden, residual)


def one_dimensional(positions: torch.Tensor) -> torch.Tensor:
    """Positions [n] of [3, n]; a view, so that a captured graph finds them where they were."""
    return positions[0] if positions.ndim > 1 else positions
