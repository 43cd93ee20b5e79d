"""How many videos go through the vision encoder in one call.

vLLM bounds a call by the encoder tokens of a step, and counts those that a video keeps. What a call costs follows the
tokens before pruning: a V2 runner would encode up to a preset's whole reduction more at once than it has memory for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def encoder_batches(num_tokens: Sequence[int], limit: int) -> Iterator[slice]:
    """Consecutive videos whose tokens before pruning add up to at most `limit`; one that has more goes alone.

    >>> [(batch.start, batch.stop) for batch in encoder_batches([5, 5, 9, 30, 1], 10)]
    [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    start, total = 0, 0
    for i, count in enumerate(num_tokens):
        if i > start and total + count > limit:
            yield slice(start, i)
            start, total = i, 0
        total += count
    if num_tokens:
        yield slice(start, len(num_tokens))
