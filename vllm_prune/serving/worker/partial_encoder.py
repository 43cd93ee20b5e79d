"""Runs a vision encoder on some cells of a video where every tensor-parallel rank has the whole encoder."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.models.vision import run_dp_sharded_mrope_vision_model

EncodeCells = Callable[[torch.Tensor, tuple[int, int, int], torch.Tensor], torch.Tensor]
"""Features [M, W] of the cells [M] (indices, increasing, on the CPU) of a video, whose patches [M * merge**2, ...] and
grid in patches come before them."""


def encode_on_all_ranks(
    encode: EncodeCells, encoder: Any, patches: torch.Tensor, grid_thw: tuple[int, int, int], cells: torch.Tensor
) -> torch.Tensor:
    """What `encode` makes of the cells, with `--mm-encoder-tp-mode data`.

    No layer of the encoder looks beyond a frame, so each rank encodes a stretch of frames with about as many cells as
    the others' and all get all features. (vLLM shares out whole media, and has one video at a time to share out.)
    """
    parts = list(split_frames(grid_thw, cells, encoder.spatial_merge_size**2, get_tensor_model_parallel_world_size()))
    features = run_dp_sharded_mrope_vision_model(_PartEncoder(encode, encoder), patches, parts, rope_type="rope_3d")
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

    def __init__(self, encode: EncodeCells, encoder: Any) -> None:
        super().__init__()
        self._encode = encode
        self._encoder = encoder  # of whose parameters vLLM reads the type
        self.spatial_merge_size, self.out_hidden_size = encoder.spatial_merge_size, encoder.out_hidden_size

    def forward(self, patches: torch.Tensor, parts: list[Part]) -> torch.Tensor:
        """Features of all `parts`, whose `patches` come one part after the other."""
        own = patches.split([part[0] for part in parts])
        return torch.cat([self._encode(some, part.grid_thw, part.cells) for some, part in zip(own, parts, strict=True)])
