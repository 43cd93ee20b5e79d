"""Cutting a long video down to tokens worth comparing across all of it."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_prune.methods._ragged import sizes
from vllm_prune.methods.base import VideoTokens

_TILE_FRAMES = 16
_TILE_ROWS, _TILE_COLUMNS = 2, 4
_LEAST = 1024
"""Candidates of a segment: so many are compared in little time, however few are kept."""


def count_candidates(quota: Tensor, size: Tensor) -> Tensor:
    """[S] int64: candidates of each segment, half as many again as it keeps, at least 1,024, at most its tokens."""
    return torch.minimum(size, (quota + quota // 2).clamp(min=_LEAST))


def tile(tokens: VideoTokens, segment: Tensor) -> Tensor:
    """[N] int64: the tile of each token, at most 16 frames of one segment by 2 x 4 cells; some tiles may be empty.

    segment: [N] int64, non-decreasing over the frames. What stands still is 8 tokens in a tile, whatever its frames.
    """
    frame, row, column = tokens.grid.unbind(1)
    _, height, width = tokens.grid_thw
    down, across = -(-height // _TILE_ROWS), -(-width // _TILE_COLUMNS)
    # Both terms never fall from frame to frame, so that no two pairs of them have one sum.
    period = torch.div(frame, _TILE_FRAMES, rounding_mode="floor") + segment
    place = torch.div(row, _TILE_ROWS, rounding_mode="floor") * across
    return period * down * across + place + torch.div(column, _TILE_COLUMNS, rounding_mode="floor")


def tile_quotas(tile_of: Tensor, segment: Tensor, wanted: Tensor) -> Tensor:
    """[G] int64: what each tile may propose, 3 times its share of the candidates `wanted` [S], at most its tokens."""
    groups = int(tile_of.max()) + 1
    share = wanted / sizes(segment, len(wanted)).clamp(min=1)
    owner = torch.zeros(groups, dtype=torch.int64, device=tile_of.device).scatter_(0, tile_of, segment)
    size = sizes(tile_of, groups)
    return torch.minimum(size, (3 * share[owner] * size).ceil().long())
