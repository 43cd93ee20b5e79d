"""Greedy maximum a posteriori inference of one long determinantal point process, without its kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_prune.methods._greedy_map import append_explained, first_picks, map_kernel, put_broken_last, score_tokens

_BLOCK = 96
"""Tokens that compete for the picks of a round; more make fewer rounds of more work, and the same picks."""
_MOST_PICKS = 64  # of a round


def greedy_map_by_blocks(points: Tensor, inverse: Tensor, weight: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The picks and the gains less 1, each [steps], that `greedy_map` makes on the kernel of all points.

    What a token adds never rises, so what it added some picks ago bounds what it adds now (Minoux 1978). A round takes
    the `_BLOCK` tokens that added most, forms their kernel less what is explained of it, and picks for as long as the
    best of them adds no less than the best of the others did; then products of matrices bring all tokens up to date.
    Time n C steps + n steps^2, memory n steps. It waits for the device once a round.

    points: [n, C] finite. inverse: [n], 1 / norm of each, 0 for what is like nothing. weight: [n], squared relevance
    in (0, 1]. steps: 1..n.
    """
    everything = torch.ones_like(weight, dtype=torch.bool)[None]
    weight, explained = put_broken_last(weight, inverse == 0), (inverse == 0).to(points.dtype)
    likeness = (points @ (inverse @ points)) * inverse
    chosen = first_picks(likeness[None], explained[None], weight[None], everything)
    noise = 100 * torch.finfo(points.dtype).eps
    among = (1 - explained[chosen]).clamp(min=noise)[:, None]
    basis = points.new_empty(min(steps, points.shape[1]), len(points))  # cosines of C numbers have a rank of C
    picks, gains = chosen, score_tokens(explained, weight)[chosen]
    while True:
        made = len(picks)
        columns = _columns(points, inverse, basis[: made - len(chosen)], chosen, among)
        basis[made - len(chosen) : made] = columns
        explained.add_(columns.square().sum(0))
        score = score_tokens(explained, weight).index_fill_(0, picks, -torch.inf)
        if made == len(basis) or bool(score.amax() < -1):
            break
        most = min(_MOST_PICKS, 2 * len(chosen) + 2, len(basis) - made)
        chosen, gain, among = _pick_round(points, inverse, basis[:made], explained, weight, score, most)
        picks, gains = torch.cat((picks, chosen)), torch.cat((gains, gain))
    if len(picks) == steps:
        return picks, gains
    units = (points * inverse[:, None])[None]
    more = append_explained(picks[None], gains[None], weight[None], everything, steps, units)
    return more[0][0], more[1][0]


def _pick_round(
    points: Tensor, inverse: Tensor, basis: Tensor, explained: Tensor, weight: Tensor, score: Tensor, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The next picks, at least 1 and at most `most`, their gains, and what is left of the kernel [q, q] among them."""
    order = score.sort(descending=True, stable=True)
    block = order.indices[:_BLOCK].sort().values  # of equals the earlier is picked
    kernel = _left(points, inverse, basis, block)
    bound = order.values[_BLOCK] if len(score) > _BLOCK else score.new_tensor(-torch.inf)
    pick = _pick_on_gpu if kernel.is_cuda else _pick_one_by_one
    chosen, gain = pick(kernel, explained[block], weight[block], score[block], bound.clamp(min=-1), most)
    return block[chosen], gain, kernel[chosen][:, chosen]


def _pick_on_gpu(
    kernel: Tensor, explained: Tensor, weight: Tensor, score: Tensor, bound: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """The picks and gains of a block for as long as a gain is not below `bound`: all are made, and then counted."""
    first, is_open = score.argmax().view(1), (score > -torch.inf)[None]
    picks, gains = map_kernel(kernel[None], explained[None], weight[None], is_open, min(most, len(score)), first)
    holds = (gains[0] >= bound).long()
    holds[0] = 1
    count = int(holds.cumprod(0).sum())
    return picks[0, :count], gains[0, :count]


def _pick_one_by_one(
    kernel: Tensor, explained: Tensor, weight: Tensor, score: Tensor, bound: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """As `_pick_on_gpu`, stopping in time: half of the steps, which are much of the time on a CPU."""
    left, explained, closed = kernel.clone(), explained.clone(), score.clamp(max=0).where(score == -torch.inf, 0)
    noise, least = 100 * torch.finfo(kernel.dtype).eps, float(bound)
    picks: list[int] = []
    gains: list[float] = []
    while len(picks) < most:
        score = score if not picks else score_tokens(explained, weight) + closed
        gain, pick = (value.item() for value in score.max(0))
        if picks and gain < least:
            break
        picks.append(int(pick))
        gains.append(gain)
        column = left[pick] * max(1 - explained[pick].item(), noise) ** -0.5
        left.addr_(column, column, alpha=-1)
        explained.addcmul_(column, column)
        closed[pick] = -torch.inf
    return torch.tensor(picks), kernel.new_tensor(gains)


def _columns(points: Tensor, inverse: Tensor, basis: Tensor, chosen: Tensor, among: Tensor) -> Tensor:
    """[q, n]: the Cholesky columns of the tokens `chosen` [q], next to those of `basis` [m, n].

    among: [q, q], what is left of the kernel among the chosen.
    """
    factor = torch.linalg.cholesky_ex(among).L
    return torch.linalg.solve_triangular(factor, _left(points, inverse, basis, chosen, of_all=True), upper=False)


def _left(points: Tensor, inverse: Tensor, basis: Tensor, rows: Tensor, *, of_all: bool = False) -> Tensor:
    """[r, r], or [r, n]: what is left of the cosines among the tokens `rows`, or between them and all.

    Of each the columns of `basis` [m, n] explain a part.
    """
    own, known = points[rows], basis[:, rows]
    cosines = own @ (points if of_all else own).mT
    cosines.mul_(inverse[rows][:, None]).mul_(inverse if of_all else inverse[rows])
    return torch.addmm(cosines, known.mT, basis if of_all else known, alpha=-1)
