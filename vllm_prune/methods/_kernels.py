"""Cosine similarities within groups of tokens, as padded batches."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_prune.methods._device import working_set
from vllm_prune.methods._finite import FiniteFeatures
from vllm_prune.methods._numerics import invert
from vllm_prune.methods._ragged import Batch

_COPY_BYTES = 16 << 20  # features are gathered, or widened to float32, this much at a time
_LARGEST_SQUARE = 1e36


def cosine_kernel(features: Tensor, batch: Batch) -> Tensor:
    """[B, n, n] cosine similarities within each group of a batch; 0 at padding.

    features: [N, C], any floating-point dtype. Computed in float32 (float64: in float64). The diagonal is 1, or 0 for a
    zero vector and for a token with NaN or Inf, which are like nothing.
    """
    wide = torch.promote_types(features.dtype, torch.float32)
    kernel = _multiply(features, batch, wide)
    square = kernel.diagonal(dim1=1, dim2=2)
    usable = batch.valid & (square > 0) & (square <= _LARGEST_SQUARE)
    inverse = invert(square.masked_fill(~usable, 0).sqrt())
    # Squares within the limit bound all products. A GPU would have to be waited for.
    if kernel.is_cuda or not bool((square <= _LARGEST_SQUARE).all()):
        kernel.nan_to_num_(0, 0, 0)
    kernel.mul_(inverse[:, :, None]).mul_(inverse[:, None, :])
    kernel.diagonal(dim1=1, dim2=2).copy_(usable)
    return kernel


def _multiply(features: Tensor, batch: Batch, wide: torch.dtype) -> Tensor:
    """[B, n, n] products of the rows of each group; features of the right dtype, in one piece, are not copied."""
    points = batch.view(features) if features.dtype == wide else None
    if points is not None:
        return points @ points.mT
    groups, length = batch.index.shape
    kernel = torch.empty(groups, length, length, dtype=wide, device=features.device)
    at_once = max(1, working_set(_COPY_BYTES, features.device) // (4 * length * features.shape[1]))
    for index, part in zip(batch.index.split(at_once), kernel.split(at_once), strict=True):
        points = features[index].to(wide)
        torch.bmm(points, points.mT, out=part)
    return kernel


def sketch(features: Tensor, batch: Batch, rank: int) -> Tensor:
    """[B, n, r] unit vectors, r = min(rank, C), whose products approximate the cosines within each group.

    A fixed random projection (signs, seeded) keeps cosines within about 1 / sqrt(r); with r = C they are exact. Zero at
    padding, for zero vectors and for tokens with NaN or Inf.
    """
    wide = torch.promote_types(features.dtype, torch.float32)
    groups, length = batch.index.shape
    channels = features.shape[1]
    points = torch.empty(groups * length, min(rank, channels), dtype=wide, device=features.device)
    projection = _signs(channels, rank).to(points) if rank < channels else None
    at_once = max(1, working_set(_COPY_BYTES, features.device) // (4 * channels))
    for index, part in zip(batch.index.flatten().split(at_once), points.split(at_once), strict=True):
        rows = features[index].to(wide)
        part.copy_(rows if projection is None else rows @ projection)
    norm = torch.linalg.vector_norm(points, dim=1)
    usable = batch.valid.flatten() & (norm > 0) & (norm.square() <= _LARGEST_SQUARE)
    inverse = invert(norm.masked_fill(~usable, 0))
    return points.nan_to_num_(0, 0, 0).mul_(inverse[:, None]).view(groups, length, -1)


def _signs(rows: int, columns: int) -> Tensor:
    """[rows, columns] of +1 and -1, the same everywhere."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 2, (rows, columns), generator=generator).mul_(2).sub_(1)


def nearest_in_batch(features: FiniteFeatures, batch: Batch, is_target: Tensor) -> Tensor:
    """[B, n] int64: for each member of a group the place of the target most similar to it (cosine), earlier on ties.

    features: [N, C]. is_target: [B, n] bool, with at least one target in every group. Of targets the place is their own
    where all before them, in every group of the batch, are targets too: nothing is computed there.
    """
    targets = is_target.sum(1)
    own = is_target.all(0).long().cumprod(0).sum()
    most, own = torch.stack((targets.max(), own)).tolist()  # one wait for a GPU
    place = is_target.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    index = batch.index.gather(1, place)
    units = features.take(index) * invert(features.norm[index])[:, :, None]
    real = torch.arange(most, device=place.device) < targets[:, None]
    closed = torch.zeros_like(place, dtype=units.dtype).masked_fill_(~real, -torch.inf)[:, None, :]
    nearest = [torch.arange(own, device=place.device).expand(len(place), own)]
    step = max(1, features.block // len(place))
    for start in range(own, is_target.shape[1], step):
        similarity = features.members(batch.part(slice(start, start + step))) @ units.mT
        nearest.append(place.gather(1, similarity.add_(closed).argmax(2)))
    return torch.cat(nearest, 1)
