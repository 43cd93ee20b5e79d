"""Refuses media whose positions lie behind the last that the model has a rotation for; runs in the API server.

Positions are those of the unpruned prompt, and in Qwen2.5-VL they follow the time of a frame: hours of video have some
that no table of vLLM's holds, however few tokens are kept. Looking one up there ends the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm_prune.config import PruneConfigError
from vllm_prune.layout import MediumLayout

_FACTOR = 4
"""Of vLLM's table for positions in three dimensions, over the model's own length."""


def last_position(text_config: Any) -> int | None:
    """The number of positions that vLLM has rotations for; None of a model whose positions have one dimension."""
    rope = getattr(text_config, "rope_parameters", None) or {}
    if "mrope_section" not in rope:
        return None
    own = rope["original_max_position_embeddings"] if rope.get("rope_type") == "yarn" else None
    return _FACTOR * (own or text_config.max_position_embeddings)


def check_positions(layouts: Sequence[MediumLayout], max_model_len: int, last: int | None) -> None:
    """Refuses videos that reach behind `last`, with a prompt and an answer of the greatest length.

    Raises:
        PruneConfigError: They do.
    """
    taken = sum(layout.extent() for layout in layouts)
    if last is not None and taken + max_model_len > last:
        raise PruneConfigError(
            f"positions={taken}: the request's media take more than the {max(last - max_model_len, 0)} that this model "
            f"has beside max_model_len={max_model_len}, by their length in time or by their size; send a shorter part "
            f"of the video, or fewer frames"
        )


def check_table(prompt_len: int, left_out: int, table: int | None) -> None:
    """Refuses what has more positions than the decoder knows, as tokens that stay keep those of the unpruned prompt.

    Args:
        prompt_len: Tokens of the prompt, with those of its media that stay.
        left_out: Positions of the unpruned prompt that no row has (`TokenCounts.positions_left_out`).
        table: Positions that the decoder knows; None: enough for any prompt.

    Raises:
        PruneConfigError: The unpruned prompt has more.
    """
    unpruned = prompt_len + left_out
    if table is not None and unpruned > table:
        raise PruneConfigError(
            f"input_tokens={prompt_len}: the tokens that stay keep their positions in the unpruned prompt of "
            f"{unpruned} tokens, and the model knows {table} positions (max_position_embeddings); send fewer images, a "
            f"shorter video or less text"
        )
