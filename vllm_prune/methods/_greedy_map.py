"""Greedy maximum a posteriori inference of determinantal point processes, many at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from vllm_prune.methods._numerics import rank_descending

_LONG = 1024
_TRITON_LIMIT = 4096  # tokens of a segment: more do not fit the registers of one program


def greedy_map(
    rows: Callable[[Tensor], Tensor],
    explained: Tensor,
    weight: Tensor,
    valid: Tensor,
    steps: int,
    memory: int,
    first: Tensor,
) -> tuple[Tensor, Tensor]:
    """Pick tokens one after the other, each time the one that adds most to the log-determinant; S segments together.

    The kernel of a segment is diag(r) C diag(r) with cosines C and relevance r, so the gain of a token is r^2 times
    what C leaves of it: only C is factorised (Cholesky updates of Chen et al., NeurIPS 2018), and the scale of r never
    harms precision. What the picks explain of a token is added up from 0: float32 resolves 1e-7 there as well, where
    a remainder of almost 1 would make tokens tie that do not.

    rows: from picks [S] to the rows of C they stand for, [S, n].
    explained: [S, n], what is explained before the first pick: 0, or 1 for what is like nothing.
    weight: [S, n], r^2, in (0, 1]. valid: [S, n], False at padding. steps: picks made in every segment, 1..n.
    memory: picks remembered exactly. With fewer than `steps` the factorisation starts afresh when it is full; with 0
        there is none: of a token max cos^2 to any pick is explained, a lower bound of the exact value.
    first: [S], the first pick of each segment; see `first_picks`.

    Returns picks and gains less 1, each [S, steps]. A token that earlier picks explain up to rounding comes after all
    others, by weight, with a value in [-3, -2]. Ties keep the earlier token; past the length of a segment picks mean
    nothing. Nothing waits for the device in the loop, and any prefix of the picks is the choice for a smaller budget.
    """
    segments, length = weight.shape
    noise = 100 * torch.finfo(weight.dtype).eps
    closed = torch.zeros_like(weight).masked_fill_(~valid, -torch.inf)
    before, explained = explained, explained.clone()
    basis = weight.new_empty(segments, min(memory, steps), length)
    picks = torch.empty(segments, steps, dtype=torch.int64, device=weight.device)
    gains = weight.new_empty(segments, steps)
    for step in range(steps):
        if memory and step and step % memory == 0:
            explained = before.clone()
        score = score_tokens(explained, weight) + closed
        pick = score.argmax(1, keepdim=True) if step else first[:, None]
        picks[:, step : step + 1] = pick
        gains[:, step : step + 1] = score.gather(1, pick)
        closed.scatter_(1, pick, -torch.inf)
        row = rows(pick.squeeze(1))
        if memory:
            known = basis[:, : step % memory]
            column = _orthogonalize(row, known, pick, explained, noise)
            basis[:, step % memory] = column
            explained.addcmul_(column, column)
        else:
            explained = explained.maximum(row.square())
    return picks, gains


def score_tokens(explained: Tensor, weight: Tensor) -> Tensor:
    """What each token adds, less 1, or its weight less 3 where all of it up to rounding is explained; all [S, n]."""
    noise = 100 * torch.finfo(weight.dtype).eps
    # -Inf for what is explained; several times as fast as `where`.
    left = torch.nn.functional.threshold(-explained, noise - 1, -torch.inf)
    return torch.addcmul(weight - 1, weight, left).maximum(weight - 3)


def map_kernel(
    kernel: Tensor,
    explained: Tensor,
    weight: Tensor,
    valid: Tensor,
    steps: int,
    first: Tensor,
    exact: bool = True,
) -> tuple[Tensor, Tensor]:
    """Picks and gains of `greedy_map` from kernels [S, n, n]: one Triton kernel where there is a GPU for it.

    exact: remember every pick, else none.
    """
    if fits_triton(kernel):
        from vllm_prune.methods import _greedy_map_triton  # needs Triton, which CPU builds of PyTorch lack

        return _greedy_map_triton.greedy_map(kernel, explained, weight, valid, steps, first, exact)
    each = torch.arange(len(weight), device=weight.device) * weight.shape[1]

    def rows(pick: Tensor) -> Tensor:
        return kernel.flatten(0, 1).index_select(0, each + pick)

    return greedy_map(rows, explained, weight, valid, steps, steps if exact else 0, first)


def fits_triton(kernel: Tensor) -> bool:
    """Whether the picks from `kernel` [S, n, n] are made by one kernel on the GPU instead of some launches a pick."""
    return kernel.is_cuda and kernel.shape[2] <= _TRITON_LIMIT and has_triton()


@cache
def has_triton() -> bool:
    """Whether Triton is installed; CPU builds of PyTorch lack it."""
    return find_spec("triton") is not None


def first_picks(likeness: Tensor, explained: Tensor, weight: Tensor, valid: Tensor) -> Tensor:
    """[S] int64: the first pick of each segment, of the tokens that add most the one nearest to the segment's mean.

    Without a relevance every token adds as much: then it is the choice of where to begin. Ties up to rounding keep the
    earlier token.

    likeness: [S, n], each token's summed cosines to its segment. explained, weight, valid: as for `greedy_map`.
    """
    score = score_tokens(explained, weight).masked_fill_(~valid, -torch.inf)
    likeness = likeness.masked_fill(score < score.amax(1, keepdim=True), -torch.inf)
    rounding = 8 * torch.finfo(likeness.dtype).eps * likeness.shape[1] ** 0.5
    return (likeness >= likeness.amax(1, keepdim=True) - rounding).to(torch.uint8).argmax(1)


def put_broken_last(weight: Tensor, is_broken: Tensor) -> Tensor:
    """`weight`, less than any relevance where `is_broken`: of tokens that add nothing, these come after all others."""
    return weight.masked_fill(is_broken, torch.finfo(weight.dtype).tiny)


def append_explained(
    picks: Tensor, gains: Tensor, weight: Tensor, valid: Tensor, steps: int, units: Tensor
) -> tuple[Tensor, Tensor]:
    """Picks and gains of `greedy_map`, each [S, m], prolonged to `steps` where earlier picks explain every other token.

    weight: [S, n], as of `put_broken_last`. valid: [S, n], as for `greedy_map`. units: [S, n, C], of length 1 or 0.
    After the picks that add something come the others by weight, with a value in [-3, -2]; then those that point the
    way of one before them, 2 less; then broken ones, 4 less.
    """
    leftover = (weight - 3).masked_fill(~valid, -torch.inf)
    own, adds = leftover.gather(1, picks), gains >= -1
    rank = rank_descending(leftover.scatter(1, picks, torch.where(adds, torch.inf, own)))
    way = find_directions(units)
    repeats = rank > torch.full_like(rank, rank.shape[1]).scatter_reduce_(1, way, rank, "amin").gather(1, way)
    is_broken = weight <= torch.finfo(weight.dtype).tiny
    leftover = leftover - 2 * repeats - 4 * is_broken
    turn = torch.arange(picks.shape[1], 0, -1, device=picks.device).to(leftover)
    ordered = leftover.scatter(1, picks, torch.where(adds, turn, leftover.gather(1, picks)))
    ordered = ordered.sort(dim=1, descending=True, stable=True)
    values = ordered.values[:, :steps]
    values[:, : picks.shape[1]] = torch.where(adds, gains, values[:, : picks.shape[1]])
    return ordered.indices[:, :steps], values


def find_directions(units: Tensor) -> Tensor:
    """[S, n] int64: in each segment a number for every direction, the same for tokens that are alike up to rounding.

    units: [S, n, C], of length 1; zero vectors are like nothing. Alike tokens are neighbours on any line through
    space: equal ones always, others unless a third falls between them. Time n C + n log n.
    """
    line = torch.arange(1, units.shape[2] + 1, device=units.device).to(units).cos()
    order = (units * line).sum(2).argsort(dim=1, stable=True)
    ordered = units.gather(1, order[:, :, None].expand_as(units))
    noise = 100 * torch.finfo(units.dtype).eps
    differs = (ordered[:, 1:] * ordered[:, :-1]).sum(2) < 1 - noise
    return torch.empty_like(order).scatter_(1, order, torch.nn.functional.pad(differs.long().cumsum(1), (1, 0)))


def _orthogonalize(row: Tensor, known: Tensor, pick: Tensor, explained: Tensor, noise: float) -> Tensor:
    """[S, n]: the next Cholesky column, from the kernel row of the pick and the columns [S, m, n] before it.

    A pick with less than noise left comes when every other token has as little: nothing is divided by zero.
    """
    part = known.gather(2, pick[:, :, None].expand(-1, known.shape[1], 1))
    if _one_by_one(known.shape[2], known):
        pairs = zip(row, known, part.squeeze(2), strict=True)
        new = torch.stack([torch.addmv(line, columns.mT, own, alpha=-1) for line, columns, own in pairs])
    else:
        new = torch.baddbmm(row[:, None], part.mT, known, alpha=-1).squeeze(1)
    return new * (1 - explained.gather(1, pick)).clamp(min=noise).rsqrt()


def times_vectors(matrices: Tensor, vectors: Tensor) -> Tensor:
    """[S, n]: each of `matrices` [S, n, m] times its own of `vectors` [S, m]."""
    if _one_by_one(matrices.shape[1], matrices):
        return torch.stack([matrix.mv(vector) for matrix, vector in zip(matrices, vectors, strict=True)])
    return torch.bmm(matrices, vectors[:, :, None]).squeeze(2)


def _one_by_one(length: int, matrices: Tensor) -> bool:
    """Whether long matrices times vectors are faster one after the other: as a batch, a CPU copies them first."""
    return not matrices.is_cuda and length >= _LONG
