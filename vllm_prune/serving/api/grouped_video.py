"""Pixels of videos that are made a group of frames at a time, and written to one place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

GROUP_BYTES = 8 << 20
"""Of a group's pixels in float32, at the most, unless a step has more; a video processor holds some copies of them."""


class GroupedVideo:
    """The pixels of a video, made a group of steps of its grid at a time.

    They are rows: those of a step are `h * w` patches, or the one square that a frame becomes (`h` = `w` = 1).
    """

    def __init__(
        self,
        grid_thw: tuple[int, int, int],
        groups: list[slice],
        make: Callable[[slice], torch.Tensor],
        first: torch.Tensor | None = None,
    ) -> None:
        """`groups`: of all T steps, in order.

        `make`: rows [n * H * W, ...] of n steps, in the precision and on the device of the request's tensors; `first`,
        if given, those of the first group.
        """
        self.grid_thw, self.groups = grid_thw, groups
        self.rows_of_step, self._make = grid_thw[1] * grid_thw[2], make
        # Made at once, so that what the processor cannot take is found out while it runs.
        first = make(groups[0]) if first is None else first
        self._first: torch.Tensor | None = first
        self._like, self.row_shape = first.new_empty(0), first.shape[1:]

    @classmethod
    def of_patches(cls, patches: torch.Tensor, grid_thw: tuple[int, int, int]) -> GroupedVideo:
        """A video that is there, in one group."""
        return cls(grid_thw, [slice(0, grid_thw[0])], lambda _: patches)

    @property
    def num_rows(self) -> int:
        """Of all steps."""
        return math.prod(self.grid_thw)

    @property
    def num_bytes(self) -> int:
        """Of all rows."""
        return self.num_rows * math.prod(self.row_shape) * self._like.element_size()

    def pixels(self, group: slice) -> torch.Tensor:
        """Rows of one of `groups`."""
        first, self._first = self._first, None
        return first if first is not None and group == self.groups[0] else self._make(group)

    def room(self, num_rows: int) -> torch.Tensor:
        """For so many rows, without values yet."""
        return self._like.new_empty(num_rows, *self.row_shape)

    def whole(self) -> torch.Tensor:
        """All rows, [T * H * W, ...]."""
        return whole_pixels([self])


def whole_pixels(videos: Sequence[GroupedVideo]) -> torch.Tensor:
    """Rows of all videos, one after the other; beside them, only those of one group are there at any time."""
    if len(videos) == len(videos[0].groups) == 1:
        return videos[0].pixels(videos[0].groups[0])
    whole, done = videos[0].room(sum(video.num_rows for video in videos)), 0
    for video in videos:
        for group in video.groups:
            num_rows = (group.stop - group.start) * video.rows_of_step
            whole[done : done + num_rows] = video.pixels(group)
            done += num_rows
    return whole


def consecutive(start: int, stop: int, at_once: int) -> list[slice]:
    """Slices of as many steps, but for the last.

    >>> consecutive(1, 6, 2)
    [slice(1, 3, None), slice(3, 5, None), slice(5, 6, None)]
    """
    return [slice(i, min(i + at_once, stop)) for i in range(start, stop, at_once)]
