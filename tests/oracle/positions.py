"""vLLM's M-RoPE rule for Qwen2-VL and Qwen2.5-VL (`get_rope_index` of transformers 5.19 has another)."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_prune.methods.base import full_grid

from .prompt import Medium


def temporal_factor(medium: Medium, tokens_per_second: float | None) -> float:
    """Positions per step of t. `tokens_per_second`: None for a model that does not know the time."""
    if medium.kind == "image" or tokens_per_second is None:
        return 1.0
    return medium.second_per_grid_t * tokens_per_second


def step_start(text: tuple[tuple[int, ...], ...], grid_thw: tuple[int, int, int], step: int) -> int:
    """Where the text before step `step` is, relative to the start of a medium whose steps have text between them.

    >>> step_start(((8, 9), (7,), (7, 6)), (2, 3, 2), 1)
    5
    """
    return sum(len(run) for run in text[:step]) + step * max(grid_thw[1:])


def token_offsets(grid: Tensor, t_factor: float) -> Tensor:
    """[3, n]: positions, relative to the start of their medium, of the tokens at the cells `grid` [n, 3].

    >>> token_offsets(torch.tensor([[0, 0, 0], [1, 2, 3], [2, 0, 1]]), 1.5).tolist()
    [[0, 1, 3], [0, 2, 0], [0, 3, 1]]
    """
    t, h, w = grid.unbind(1)
    return torch.stack([(t.double() * t_factor).long(), h, w])


def medium_extent(grid_thw: tuple[int, int, int], t_factor: float) -> int:
    """How far after the start of an unpruned medium of merged extent `grid_thw` the next token is.

    >>> medium_extent((3, 2, 2), 1.5)
    4
    """
    return int(token_offsets(full_grid(grid_thw), t_factor).max()) + 1
