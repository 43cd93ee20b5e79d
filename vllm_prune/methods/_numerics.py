"""Floating-point care that several methods need."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_NORM = 1e18  # its square, and a sum of such squares, still fits float32


def to_finite(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features to compute with, and their norms.

    features: [N, C], any floating-point dtype, any memory layout.
    Returns [N, C] contiguous in float32 (float64 stays float64) and [N]. A token that holds NaN or Inf, or is longer
    than 1e18, becomes the zero vector: it resembles nothing. On a CPU
    nothing is copied when nothing has to change.
    """
    wide = features.to(torch.promote_types(features.dtype, torch.float32)).contiguous()
    norm = torch.linalg.vector_norm(wide, dim=1)
    broken = ~(norm <= LARGEST_NORM)
    if wide.is_cuda or bool(broken.any()):  # a copy costs less than waiting for the device
        wide = wide.masked_fill(broken[:, None], 0)
        norm = norm.masked_fill(broken, 0)
    return wide, norm


def invert(norm: Tensor) -> Tensor:
    """1 / norm, and 0 where the norm is 0."""
    return torch.where(norm > 0, norm, torch.inf).reciprocal()


def rank_descending(score: Tensor) -> Tensor:
    """Rank of each entry along the last dimension, 0 for the largest; ties keep the earlier entry.

    >>> rank_descending(torch.tensor([1.0, 5.0, 5.0])).tolist()
    [2, 0, 1]
    """
    order = score.sort(dim=-1, descending=True, stable=True).indices
    place = torch.arange(score.shape[-1], device=score.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, place)
