"""Density peaks clustering with k nearest neighbours (DPC-KNN: Du et al., Knowledge-Based Systems 99, 2016).

A point is a good centre when it is dense (its neighbours are near) and far from any denser point. Everything is
computed in logarithms, so no density underflows whatever the scale of the features.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from vllm_prune.methods._numerics import rank_descending
from vllm_prune.methods._ragged import Batch, batches

FARTHER = 1e37
"""Than any finite points are: norms are 1e18 at most."""


class Items(Protocol):
    """N items of C channels, finite, that need not exist all at once."""

    @property
    def channels(self) -> int:
        """C."""
        ...

    def members(self, batch: Batch) -> Tensor:
        """[B, n, C] those of some groups, not to be written to; anything finite at padding."""
        ...


def cluster_groups(items: Items, group: Tensor, quota: Tensor, k: int) -> Tensor:
    """Cluster every group by itself: the centre of each item.

    group: [N] int64, -1 for items that take no part. quota: [G], centres of each group, from 1
    to its size. Returns [N] int64: the index of the item's centre (a centre's is its own), -1 where group is -1.
    """
    root = group.new_full((len(group) + 1,), -1)  # the last one takes what padding says
    for batch in batches(group, len(quota), items.channels):
        distance = squared_distances(items.members(batch), batch.valid)
        centre = assign_to_centres(distance, pick_centres(distance, batch.valid, quota[batch.group], k))
        member = torch.where(batch.valid, batch.index, len(group))
        root.scatter_(0, member.flatten(), batch.index.gather(1, centre).flatten())
    return root[:-1]


def squared_distances(points: Tensor, valid: Tensor) -> Tensor:
    """[B, n, n] squared Euclidean distances per channel of `points` [B, n, C]; Inf where either is not `valid` [B, n].

    Distances within the rounding noise of the products they come from (about 1e-6 of the squared norms) are 0, so that
    duplicates tie, and ties then keep the earlier.
    """
    return distances_from_products(points @ points.mT, valid, points.shape[2])


def distances_from_products(product: Tensor, valid: Tensor, channels: int) -> Tensor:
    """`squared_distances` of points of which the products [B, n, n] are there already."""
    square = (product.diagonal(dim1=1, dim2=2) / channels).masked_fill(~valid, torch.inf)
    return without_noise(product, square[:, :, None] + square[:, None, :], channels)


def without_noise(product: Tensor, scale: Tensor, channels: int) -> Tensor:
    """Distances from products and from the sums of both squares, `scale`, which is overwritten."""
    distance = torch.add(scale, product, alpha=-2 / channels)
    noise = scale.mul_(8 * torch.finfo(product.dtype).eps)
    return distance.masked_fill_(distance < noise, 0)


def pick_centres(distance: Tensor, valid: Tensor, quota: Tensor, k: int) -> Tensor:
    """[B, n] bool: the `quota` [B] best centres of each batch row, given `squared_distances` [B, n, n].

    log density = -(mean squared distance to the k nearest, the point itself being one of them); log separation = log of
    the distance to the nearest denser point, for the densest one the largest distance in its group; score = their sum.
    Of two equally dense points the earlier counts as denser, of two equal scores the earlier is taken.
    """
    nearest = distance.topk(min(k, distance.shape[1]), dim=2, largest=False).values
    near = nearest.isfinite()
    spread = nearest.masked_fill(~near, 0).sum(2) / near.sum(2).clamp(min=1)
    spread = spread.masked_fill(~valid, torch.inf)
    separation = _distance_to_denser(distance, spread)
    rank = rank_descending(score(separation, spread).masked_fill(~valid, -torch.inf))
    return (rank < quota[:, None]) & valid


def score(separation: Tensor, spread: Tensor) -> Tensor:
    """log separation + log density, the former of a squared distance; above -Inf, which is for what is not valid."""
    return (separation.log().mul_(0.5) - spread).clamp_(min=torch.finfo(spread.dtype).min)


def _distance_to_denser(distance: Tensor, spread: Tensor) -> Tensor:
    """[B, n] squared distance to the nearest point of smaller `spread` [B, n]; if none, the largest of all."""
    rank = rank_descending(-spread).to(distance.dtype)
    # Above every distance where the other point is no denser; arithmetic takes a quarter of the time of a mask.
    no_denser = torch.relu((rank + 1)[:, None, :] - rank[:, :, None]).mul_(FARTHER)
    nearest = no_denser.add_(distance).amin(2)
    largest = distance.masked_fill(distance == torch.inf, 0).amax((1, 2))
    return torch.where(nearest >= FARTHER, largest[:, None], nearest)


def assign_to_centres(distance: Tensor, is_centre: Tensor) -> Tensor:
    """[B, n] int64: the nearest centre of each point, the earlier on ties; a centre belongs to itself."""
    no_centre = torch.zeros_like(distance[:, 0]).masked_fill_(~is_centre, torch.inf)
    nearest = (distance + no_centre[:, None, :]).argmin(2)
    own = torch.arange(is_centre.shape[1], device=nearest.device)
    return torch.where(is_centre, own, nearest)
