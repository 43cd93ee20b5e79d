"""Runs Qwen2.5-VL's vision encoder on some cells of a video: shorter frames, smaller windows, the same positions."""

from __future__ import annotations

from typing import Any

import torch


class _PartialGrid:
    """Stands in for the encoder where it lays out a grid, and leaves out the cells that are not encoded.

    `Qwen2_5_VisionTransformer.prepare_encoder_metadata` asks itself for the layout of each grid (`get_rope_by_thw`) and
    makes everything else from the answer; this gives it another answer.
    """

    def __init__(self, encoder: Any, cells: torch.Tensor) -> None:
        self._encoder, self._cells = encoder, cells

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def get_rope_by_thw(self, t: int, h: int, w: int) -> tuple[torch.Tensor, ...]:
        """Rotary factors, order of cells in windows, ends of windows and lengths of frames, in patches."""
        cos, sin, order, window_ends, _ = self._encoder.get_rope_by_thw(t, h, w)
        unit = self._encoder.spatial_merge_unit
        number = torch.full((len(order),), -1, dtype=order.dtype)
        number[self._cells] = torch.arange(len(self._cells), dtype=order.dtype)
        there = number[order] >= 0
        before = torch.cat((torch.zeros(1, dtype=torch.int64), there.cumsum(0)))
        window_ends = (before[window_ends.long() // unit] * unit).to(torch.int32)
        frames = torch.arange(0, len(order) + 1, len(order) // t)
        lengths = (before[frames].diff() * unit).to(torch.int32)
        device = there.to(cos.device)
        return (
            cos.view(len(order), unit, -1)[device].flatten(0, 1),
            sin.view(len(order), unit, -1)[device].flatten(0, 1),
            number[order][there],
            torch.unique_consecutive(window_ends[window_ends > 0]),
            lengths[lengths > 0],
        )


def encode_cells(encoder: Any, patches: torch.Tensor, grid_thw: tuple[int, int, int], cells: torch.Tensor) -> Any:
    """Features [M, C] of some cells of a video.

    Args:
        encoder: vLLM's `Qwen2_5_VisionTransformer`.
        patches: Those of the cells, [M * merge**2, ...].
        grid_thw: The video's grid in patches.
        cells: Indices of the cells, increasing, [M] on the CPU.
    """
    prepare = type(encoder).prepare_encoder_metadata
    metadata = prepare(_PartialGrid(encoder, cells), [list(grid_thw)], device=encoder.device)
    return encoder(patches, grid_thw=None, encoder_metadata=metadata)
