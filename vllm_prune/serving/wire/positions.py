"""How prompts of a decoder with plain RoPE get positions of their own, and how many there are."""

from __future__ import annotations

from typing import Any

_TABLE = "vllm_prune_position_table"


def ask_for_positions(hf_config: Any) -> None:
    """Lets vLLM ask the model for every prompt's positions, as it asks models with M-RoPE.

    Args:
        hf_config: Of the whole model. What the decoder rotates by is in its text part, which stays as it is.
    """
    hf_config.rope_parameters = {"rope_type": "default", "mrope_section": [1, 1, 1]}
    setattr(hf_config, _TABLE, 0)


def write_position_table(hf_config: Any, hf_text_config: Any, max_model_len: int) -> None:
    """Leaves the number of positions that the decoder knows where processor and scheduler find it.

    Of a decoder with plain RoPE only: with M-RoPE vLLM's table is four times as long as a prompt may be. A scaled one
    is at least as long as vLLM lets a prompt be.
    """
    if getattr(hf_config, _TABLE, None) is not None:
        setattr(hf_config, _TABLE, max(getattr(hf_text_config, "max_position_embeddings", 0), max_model_len))


def read_position_table(hf_config: Any) -> int | None:
    """What `write_position_table` left there; None where it does not bind."""
    return getattr(hf_config, _TABLE, None) or None
