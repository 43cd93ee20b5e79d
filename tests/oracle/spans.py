"""Which parts of a prompt run densely: each from the first video of a turn to the start of the reply."""

from __future__ import annotations

from collections.abc import Iterator


def dense_spans(ids: list[int], videos: list[int], reply_header: tuple[int, ...]) -> list[tuple[int, int]]:
    """(start, stop) of the dense spans among the ids of a prompt with one placeholder, at `videos`, for each video.

    >>> dense_spans([9, 6, 9, 6, 2, 6, 2, 8, 7, 2, 8, 6, 9], [1, 3, 11], (2, 8))
    [(1, 8), (11, 13)]
    """
    spans: list[tuple[int, int]] = []
    for start in videos:
        if not spans or start >= spans[-1][1]:
            spans.append((start, _span_stop(ids, start, reply_header)))
    return spans


def _span_stop(ids: list[int], start: int, reply_header: tuple[int, ...]) -> int:
    length = len(reply_header)
    stops = [i + length for i in range(start, len(ids)) if length and tuple(ids[i : i + length]) == reply_header]
    return min([*stops, len(ids)])


def segments(length: int, spans: list[tuple[int, int]]) -> Iterator[tuple[int, int, bool]]:
    """(start, stop, dense) of consecutive parts, none empty, that cover a prompt of `length` ids.

    >>> list(segments(6, [(1, 3), (3, 5)]))
    [(0, 1, False), (1, 3, True), (3, 5, True), (5, 6, False)]
    """
    done = 0
    for start, stop in spans:
        if done < start:
            yield done, start, False
        yield start, stop, True
        done = stop
    if done < length:
        yield done, length, False
