"""The rows of a dense layer in parts: what a layer takes for a row while it runs, it takes for one part at a time.

Dense rows are more than vLLM's budget of tokens for a step, and only the budget bounds what a layer's activations take.
Attention is causal, so that a layer may run over the first rows of every request, then over the next ones, which attend
to the scratch cache of those before them: the same numbers, whatever the parts.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from vllm_prune.serving.worker.upload import upload

Range = tuple[int, int]
"""Of a request's dense rows, counted from its first: start <= i < end."""


@dataclass(frozen=True, eq=False)
class Part:
    """Rows that a layer computes in one call: some dense rows of each request, in the first part behind all others."""

    num_other: int
    """Other rows; 0 but in the first part."""
    ranges: list[Range] | None
    """Of every request; None for all rows there are."""
    dense: torch.Tensor
    """Dense rows [n], increasing."""
    rows: torch.Tensor
    """All of its rows [num_other + n] as the layer's tensors number them: other rows come first there."""

    def take(self, values: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """What belongs to its rows, of `values` with what belongs to all rows along `dim`."""
        return values if self.ranges is None else values.index_select(dim, self.rows)

    def put(self, values: torch.Tensor, into: torch.Tensor | None, length: int) -> torch.Tensor:
        """`into` [length, ...] (None: what is not there yet) with `values` at all of its rows."""
        return self._put(self.rows, values, into, length)

    def put_dense(self, values: torch.Tensor, into: torch.Tensor | None, length: int) -> torch.Tensor:
        """The same for `values` of its dense rows alone, and `length` dense rows."""
        return self._put(self.dense, values, into, length)

    def _put(self, index: torch.Tensor, values: torch.Tensor, into: torch.Tensor | None, length: int) -> torch.Tensor:
        if self.ranges is None:
            return values
        if into is None:
            into = values.new_empty(length, *values.shape[1:])
        into[index] = values
        return into


def split_rows(num_other: int, leading: list[int], lengths: list[int], most: int) -> list[list[Range]]:
    """Ranges of every request's dense rows, part after part.

    The first part goes with the other rows. It holds every request's leading rows, which others of the step may read.

    Args:
        num_other: Other rows.
        leading: Of each request, its rows before its first video.
        lengths: Of each request, its dense rows.
        most: Rows of a part, at least 1; the first has more where other and leading rows alone are more.

    >>> split_rows(2, [1, 2], [6, 4], most=5)
    [[(0, 1), (0, 2)], [(1, 6), (2, 2)], [(6, 6), (2, 4)]]
    >>> split_rows(2, [1, 2], [6, 4], most=12)
    [[(0, 6), (0, 4)]]
    """
    parts: list[list[Range]] = []
    done, ends, room = [0] * len(lengths), list(leading), max(most - num_other - sum(leading), 0)
    while not parts or done != lengths:
        for index, length in enumerate(lengths):
            more = min(room, length - ends[index])
            ends[index] += more
            room -= more
        parts.append(list(zip(done, ends, strict=True)))
        done, ends, room = ends, list(ends), most
    return parts


def make_parts(num_other: int, leading: list[int], lengths: list[int], most: int, device: torch.device) -> list[Part]:
    """The parts of `split_rows`, their rows on `device`."""
    split = split_rows(num_other, leading, lengths, most)
    starts = list(itertools.accumulate([0, *lengths]))[: len(lengths)]
    parts: list[Part] = []
    for index, ranges in enumerate(split):
        own = [torch.arange(start + a, start + b) for start, (a, b) in zip(starts, ranges, strict=True)]
        dense = torch.cat([torch.arange(0), *own])
        others = 0 if index else num_other
        rows = torch.cat((torch.arange(others), num_other + dense))
        whole = None if len(split) == 1 else ranges
        parts.append(Part(others, whole, upload(dense, device), upload(rows, device)))
    return parts
