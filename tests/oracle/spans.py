"""Which parts of a prompt run densely: each from the first video of a turn to the start of the reply."""

from __future__ import annotations

from collections.abc import Iterator

REPLY_HEADER = 4
"""Tokens of "\\n<|im_start|>assistant\\n", which follow the <|im_end|> of the question."""


def dense_spans(ids: list[int], video_id: int, im_end_id: int) -> list[tuple[int, int]]:
    """(start, stop) of the dense spans among the ids of a prompt with one placeholder for each medium.

    >>> video, end = 6, 2
    >>> dense_spans([9, video, 9, video, 9, end, 9, 9, 9, 9, 8, end, 9, video, 9], video, end)
    [(1, 10), (13, 15)]
    """
    spans: list[tuple[int, int]] = []
    for start, token_id in enumerate(ids):
        if token_id == video_id and (not spans or start >= spans[-1][1]):
            spans.append((start, _span_stop(ids, start, im_end_id)))
    return spans


def _span_stop(ids: list[int], start: int, im_end_id: int) -> int:
    if im_end_id not in ids[start:]:
        return len(ids)
    return min(ids.index(im_end_id, start) + 1 + REPLY_HEADER, len(ids))


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
