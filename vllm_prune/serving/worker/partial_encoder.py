"""Runs Qwen2.5-VL's vision encoder on some cells of a video: shorter frames, smaller windows, the same positions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.models.vision import run_dp_sharded_mrope_vision_model


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


def encode_on_all_ranks(
    encoder: Any, patches: torch.Tensor, grid_thw: tuple[int, int, int], cells: torch.Tensor
) -> torch.Tensor:
    """`encode_cells` where every tensor-parallel rank has the whole encoder (`--mm-encoder-tp-mode data`).

    No layer of the encoder looks beyond a frame, so each rank encodes a stretch of frames with about as many cells as
    the others' and all get all features. (vLLM shares out whole media, and has one video at a time to share out.)
    """
    parts = list(split_frames(grid_thw, cells, encoder.spatial_merge_unit, get_tensor_model_parallel_world_size()))
    features = run_dp_sharded_mrope_vision_model(_PartEncoder(encoder), patches, parts, rope_type="rope_3d")
    return torch.cat(features)


class Part(list[int]):
    """Some cells of a video as vLLM's sharing sees a medium: a list whose product is its number of patches."""

    def __init__(self, grid_thw: tuple[int, int, int], cells: torch.Tensor, unit: int) -> None:
        super().__init__([len(cells) * unit])
        self.grid_thw, self.cells = grid_thw, cells


def split_frames(grid_thw: tuple[int, int, int], cells: torch.Tensor, unit: int, count: int) -> Iterator[Part]:
    """`cells` in `count` parts of whole frames, or fewer, in order."""
    t, h, w = grid_thw
    upto = torch.bincount(cells // (h * w // unit), minlength=t).cumsum(0)
    # The end of the frame nearest to each equal share.
    shares = torch.arange(1, count) * len(cells) / count
    cuts = upto[(upto - shares[:, None]).abs().argmin(1)].tolist()
    for start, stop in itertools.pairwise([0, *cuts, len(cells)]):
        if stop > start:
            yield Part(grid_thw, cells[start:stop], unit)


class _PartEncoder(torch.nn.Module):
    """The encoder as vLLM's sharing calls it, with parts of videos in place of grids."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.spatial_merge_size, self.out_hidden_size = encoder.spatial_merge_size, encoder.out_hidden_size

    def forward(self, patches: torch.Tensor, parts: list[Part]) -> torch.Tensor:
        """Features of all `parts`, whose `patches` come one part after the other."""
        own = patches.split([part[0] for part in parts])
        return torch.cat(
            [encode_cells(self.encoder, some, part.grid_thw, part.cells) for some, part in zip(own, parts, strict=True)]
        )
