"""What the scheduler tells the workers with a step: the dense prefixes that stretch over several steps."""

from __future__ import annotations

from typing import NamedTuple

ATTRIBUTE = "_vllm_prune_long_spans"
"""Of vLLM's `SchedulerOutput`: a `LongSpan` for every one that is under way, this step's included."""


class LongSpan(NamedTuple):
    """A dense prefix under way."""

    block: int
    """vLLM's block that holds its first token. No other request has it: its content is cached when it is complete."""
    block_size: int
    """Tokens of such a block."""
    start: int
    """Index of its first token in the prompt."""
    rows: int
    """All of its dense rows."""
    layer: int
    """The first behind which any of its media loses tokens."""
