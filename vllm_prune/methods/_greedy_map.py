"""Greedy maximum a posteriori inference of determinantal point processes, many at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_LONG = 1024


def greedy_map(
    rows: Callable[[Tensor], Tensor], diagonal: Tensor, weight: Tensor, valid: Tensor, steps: int, memory: int
) -> tuple[Tensor, Tensor]:
    """Pick tokens one after the other, each time the one that adds most to the log-determinant; S segments together.

    The kernel of a segment is diag(r) C diag(r) with cosines C and relevance r, so the gain of a token is r^2 times
    what C leaves of it: only C is factorised (Cholesky updates of Chen et al., NeurIPS 2018), and the scale of r never
    harms precision.

    rows: from picks [S] to the rows of C they stand for, [S, n]. diagonal: [S, n] of C, 1 (or 0: like nothing).
    weight: [S, n], r^2, in (0, 1]. valid: [S, n], False at padding. steps: picks made in every segment, 1..n.
    memory: picks remembered exactly. With fewer than `steps` the factorisation starts afresh when it is full; with 0
        there is none: a token is left 1 - max cos^2 to any pick, an upper bound of the exact value.

    Returns picks and gains, each [S, steps]. A token that earlier picks explain up to rounding comes after all others,
    by weight, with a gain in [-2, -1]. Ties keep the earlier token; past the length of a segment picks mean nothing.
    Nothing waits for the device in the loop, and any prefix of the picks is the choice for a smaller budget.
    """
    segments, length = diagonal.shape
    noise = 100 * torch.finfo(diagonal.dtype).eps
    leftover = weight - 2
    closed = torch.zeros_like(diagonal).masked_fill_(~valid, -torch.inf)
    residual = diagonal.clone()
    basis = diagonal.new_empty(segments, min(memory, steps), length)
    picks = torch.empty(segments, steps, dtype=torch.int64, device=diagonal.device)
    gains = diagonal.new_empty(segments, steps)
    for step in range(steps):
        if memory and step and step % memory == 0:
            residual = diagonal.clone()
        left = torch.nn.functional.threshold(residual, noise, -torch.inf)  # several times as fast as `where`
        score = torch.maximum(weight * left, leftover) + closed
        pick = score.argmax(1, keepdim=True)
        picks[:, step : step + 1] = pick
        gains[:, step : step + 1] = score.gather(1, pick)
        closed.scatter_(1, pick, -torch.inf)
        row = rows(pick.squeeze(1))
        if memory:
            known = basis[:, : step % memory]
            column = _orthogonalize(row, known, pick, residual, noise)
            basis[:, step % memory] = column
            residual.addcmul_(column, column, value=-1)
        else:
            residual = residual.minimum(1 - row.square())
    return picks, gains


def append_explained(picks: Tensor, gains: Tensor, weight: Tensor, valid: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Picks and gains of `greedy_map`, each [S, m], prolonged to `steps` where earlier picks explain every other token.

    weight, valid: [S, n], as for `greedy_map`.
    """
    leftover = (weight - 2).masked_fill(~valid, -torch.inf).scatter(1, picks, -torch.inf)
    ordered = leftover.sort(dim=1, descending=True, stable=True)
    more = steps - picks.shape[1]
    return torch.cat((picks, ordered.indices[:, :more]), 1), torch.cat((gains, ordered.values[:, :more]), 1)


def _orthogonalize(row: Tensor, known: Tensor, pick: Tensor, residual: Tensor, noise: float) -> Tensor:
    """[S, n]: the next Cholesky column, from the kernel row of the pick and the columns [S, m, n] before it.

    A pick with less than noise left comes when every other token has as little: nothing is divided by zero.
    """
    part = known.gather(2, pick[:, :, None].expand(-1, known.shape[1], 1))
    if _one_by_one(known.shape[2], known):
        pairs = zip(row, known, part.squeeze(2), strict=True)
        new = torch.stack([torch.addmv(line, columns.mT, own, alpha=-1) for line, columns, own in pairs])
    else:
        new = torch.baddbmm(row[:, None], part.mT, known, alpha=-1).squeeze(1)
    return new * residual.gather(1, pick).clamp(min=noise).rsqrt()


def times_vectors(matrices: Tensor, vectors: Tensor) -> Tensor:
    """[S, n]: each of `matrices` [S, n, m] times its own of `vectors` [S, m]."""
    if _one_by_one(matrices.shape[1], matrices):
        return torch.stack([matrix.mv(vector) for matrix, vector in zip(matrices, vectors, strict=True)])
    return torch.bmm(matrices, vectors[:, :, None]).squeeze(2)


def _one_by_one(length: int, matrices: Tensor) -> bool:
    """Whether long matrices times vectors are faster one after the other: as a batch, a CPU copies them first."""
    return not matrices.is_cuda and length >= _LONG
