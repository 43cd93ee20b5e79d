"""Precomputed embeddings have the shape that their grid says. A worker that gets others would end with the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

_GRID = 3  # steps, rows and columns of patches


def check_embeddings(data: Mapping[str, Any], field: str, grid_field: str, *, width: int, merge: int) -> None:
    """Refuses embeddings that do not fit the model or their own grid.

    Args:
        data: What the Hugging Face processor made of a request, or passed through.
        field: Name of the embeddings, [rows, width]; nothing is checked without them.
        grid_field: Name of their grids in patches, [media, 3].
        width: Channels that the model takes of an embedding.
        merge: Patches along a side of a cell, which is one embedding.

    Raises:
        ValueError: Names field, value and what it should be.
    """
    if field not in data:
        return
    embeddings, grids = data[field], data[grid_field]
    if torch.is_floating_point(grids) or grids.ndim != 2 or grids.shape[1] != _GRID or bool((grids < 1).any()):
        raise ValueError(f"{grid_field}={_shown(grids)}: must be three integers of 1 or more for each medium")
    if bool((grids[:, 1:] % merge != 0).any()):
        raise ValueError(f"{grid_field}={_shown(grids)}: height and width must be multiples of {merge} patches")
    rows = sum(t * (h // merge) * (w // merge) for t, h, w in grids.tolist())
    if not torch.is_floating_point(embeddings) or embeddings.shape != (rows, width):
        raise ValueError(
            f"{field}: has shape {list(embeddings.shape)} of {embeddings.dtype}; {grid_field}={_shown(grids)} and this "
            f"model need floating-point numbers of shape {[rows, width]}"
        )


def _shown(grids: torch.Tensor) -> str:
    return str(grids.flatten()[:12].tolist())
