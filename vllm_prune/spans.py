"""Dense spans: the parts of a prompt that are prefilled together because the question decides which tokens stay.

A span begins with the first video of a turn and ends where the reply to that turn begins. Inside it the first layers
see all tokens of its videos; whatever comes later sees only those that were kept. So the span is what a prefill step
may not cut, and what the cache key of every block in it depends on. It follows from the prompt up to its end alone, not
from how the prompt is chunked or goes on, so that recomputing a prompt gives what was computed before.

Where a reply begins is told by the whole header that the chat template puts before it. A single token cannot tell: vLLM
reads special tokens in what users type, and a question goes on behind an end of turn that is part of it. Whoever types
the whole header gets what a chat with that turn gets: to the model, and to the cache, it is one.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TurnFormat:
    """How a chat template ends a question and begins the reply."""

    reply_start: tuple[int, ...]
    """Token ids from the end of the question's turn to the name of the one who replies, at least one."""
    num_more: int
    """Tokens of the reply's header after these: whitespace, which a reply may begin with as well."""
    special: tuple[int, ...] = ()
    """Token ids that stand for turns, media and the like, never for text."""


@dataclass(frozen=True)
class Span:
    """Prompt indices start <= i < end."""

    start: int
    end: int


def dense_spans(prompt: Sequence[int], videos: Iterable[tuple[int, int]], turn: TurnFormat) -> list[Span]:
    """The spans of a prompt, in order and apart.

    Args:
        prompt: Token ids, placeholders included.
        videos: (offset, length) of the placeholders of every video whose tokens the question chooses, in order.
        turn: How questions end.

    >>> turn = TurnFormat(reply_start=(2, 9), num_more=1)
    >>> dense_spans([7, 6, 6, 8, 2, 8, 2, 9, 5, 5], [(1, 2)], turn)
    [Span(start=1, end=9)]
    >>> dense_spans([6, 6, 8], [(0, 2)], turn)
    [Span(start=0, end=3)]
    """
    spans: list[Span] = []
    for offset, length in videos:
        end = _question_end(prompt, offset + length, turn)
        if spans and offset < spans[-1].end:
            spans[-1] = Span(spans[-1].start, max(spans[-1].end, end))
        else:
            spans.append(Span(offset, end))
    return spans


def _question_end(prompt: Sequence[int], start: int, turn: TurnFormat) -> int:
    header = find_reply(prompt, start, turn)
    return len(prompt) if header is None else min(header + len(turn.reply_start) + turn.num_more, len(prompt))


def find_reply(prompt: Sequence[int], start: int, turn: TurnFormat) -> int | None:
    """Where the header of the first reply at `start` or after it begins; None if there is none."""
    first, length = turn.reply_start[0], len(turn.reply_start)
    for index in range(start, len(prompt) - length + 1):
        if prompt[index] == first and tuple(prompt[index : index + length]) == turn.reply_start:
            return index
    return None


def clip_to_spans(spans: Sequence[Span], start: int, end: int) -> int:
    """Where a prefill step that would compute start <= i < end has to end.

    A step either stops before a span or ends with it, since a span is computed whole and what follows it sees the
    compacted cache.

    >>> spans = [Span(4, 9)]
    >>> [clip_to_spans(spans, 0, end) for end in (3, 4, 6, 9, 12)]
    [3, 4, 4, 9, 9]
    >>> clip_to_spans(spans, 4, 8), clip_to_spans(spans, 9, 12)
    (4, 12)
    """
    for span in spans:
        if start < span.end and span.start < end:
            return span.end if end >= span.end else max(start, span.start)
    return end


def clip_hit(spans: Sequence[Span], num_tokens: int) -> int:
    """How many of `num_tokens` tokens found in the prefix cache may be used: a hit never ends inside a span.

    >>> [clip_hit([Span(4, 9)], hit) for hit in (3, 4, 8, 9)]
    [3, 4, 4, 9]
    """
    index = bisect.bisect_left([span.end for span in spans], num_tokens + 1)
    if index < len(spans) and spans[index].start < num_tokens:
        return spans[index].start
    return num_tokens


def longest_piece(span: Span, media: Iterable[tuple[int, int]]) -> int:
    """The most tokens of a span that only one step can compute: a step may end inside a medium, and nowhere else.

    Args:
        span: The span.
        media: (offset, length) of the placeholders of its media, in order.

    >>> longest_piece(Span(2, 20), [(2, 5), (9, 4)])
    8
    >>> longest_piece(Span(2, 20), [(2, 1)])
    18
    """
    longest, start = 0, span.start
    for offset, length in media:
        if length > 1:
            longest, start = max(longest, offset + 1 - start), offset + length - 1
    return max(longest, span.end - start)
