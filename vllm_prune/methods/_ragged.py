"""Groups of unequal size, worked on together as padded batches of bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_prune.methods._device import working_set

_BATCH_BYTES = 16 << 20  # of the padded features or distances, whichever is larger; one group may exceed it


@dataclass(frozen=True)
class Batch:
    """Some groups as rows of a rectangle.

    group: [B] the ids of the groups; ids: the same, on the host.
    index: [B, n] the members of each group, in order; padding repeats an arbitrary valid index.
    valid: [B, n] bool, False at padding, which is always at the end of a row.
    """

    group: Tensor
    index: Tensor
    valid: Tensor
    ids: list[int]

    def view(self, rows: Tensor) -> Tensor | None:
        """[B, n, ...] the members' rows of `rows` [N, ...] without a copy, where they lie in one piece; else None.

        On a GPU always None: it would have to be waited for.
        """
        if self.index.is_cuda:
            return None
        first, count = int(self.index[0, 0]), self.index.numel()
        in_one_piece = torch.arange(first, first + count, device=self.index.device).view_as(self.index)
        if not rows.is_contiguous() or not torch.equal(self.index, in_one_piece):
            return None
        return rows[first : first + count].view(*self.index.shape, *rows.shape[1:])

    def part(self, columns: slice) -> Batch:
        """The members in some columns."""
        return Batch(self.group, self.index[:, columns], self.valid[:, columns], self.ids)

    def take(self, rows: Tensor) -> Tensor:
        """[B, n, ...] the members' rows of `rows` [N, ...], not to be written to: a view if possible."""
        found = self.view(rows)
        return rows[self.index] if found is None else found


def sizes(group: Tensor, num_groups: int) -> Tensor:
    """[num_groups] int64: members of each group; `group` holds -1 for members of none."""
    return torch.zeros(num_groups, dtype=torch.int64, device=group.device).scatter_add_(
        0, group.clamp(min=0), (group >= 0).long()
    )


def groups_below(ends: list[int], items: int, groups: int | None = None) -> Iterator[slice]:
    """Consecutive groups that have up to `items` items together and are up to `groups`, at least one group at a time.

    ends: where each group ends, counted in items.

    >>> [(part.start, part.stop) for part in groups_below([2, 3, 9, 10], 3)]
    [(0, 2), (2, 3), (3, 4)]
    """
    first = start = 0
    while first < len(ends):
        stop = first + 1
        while stop < len(ends) and ends[stop] - start <= items and stop - first != groups:
            stop += 1
        yield slice(first, stop)
        first, start = stop, ends[stop - 1]


def items_of(ends: list[int], groups: slice) -> slice:
    """The items of consecutive groups; arguments as in `groups_below`.

    >>> items_of([2, 3, 9, 10], slice(2, 4))
    slice(3, 10, None)
    """
    return slice(ends[groups.start - 1] if groups.start else 0, ends[groups.stop - 1])


def batches(group: Tensor, num_groups: int, channels: int, limit: int | None = None) -> Iterator[Batch]:
    """The non-empty groups, largest first, in batches that pad little and stay small.

    group: [N] int64, the group of each of N items or -1. Members of a group keep their order.
    channels: width of the features of an item; a batch holds B * n * max(n, channels) floats in `limit` bytes (None:
        16 MiB, on a GPU 256).

    >>> [b.index.tolist() for b in batches(torch.tensor([1, 0, -1, 1]), 2, 1)]
    [[[0, 3], [1, 1]]]
    """
    size = sizes(group, num_groups)
    order = group.argsort(stable=True)
    start = size.cumsum(0) - size + (group < 0).sum()
    by_size, ids = size.sort(descending=True, stable=True)
    limit = limit or working_set(_BATCH_BYTES, group.device)
    lengths, names = torch.stack((by_size, ids)).tolist()  # one wait for a GPU
    filled = sum(length > 0 for length in lengths)
    first = 0
    while first < filled:
        longest = lengths[first]
        count = max(1, limit // (4 * longest * max(longest, channels)))
        last = min(first + count, filled)
        rows = ids[first:last]
        place = torch.arange(longest, device=group.device)
        valid = place < size[rows, None]
        yield Batch(rows, order[start[rows, None] + torch.where(valid, place, 0)], valid, names[first:last])
        first += count
