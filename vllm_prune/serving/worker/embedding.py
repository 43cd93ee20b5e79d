"""Embeddings of token ids outside vLLM's own step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def base_embedding(language_model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Token ids [Q] to embeddings [Q, C], by the checkpoint's own table whatever adapters a step has.

    Where LoRA is on, vLLM puts a layer around the table that looks up the adapter of each row of the step being run.
    These ids are no rows of a step; and what is made of them is shared by requests with different adapters.
    """

    def embed(ids: torch.Tensor) -> torch.Tensor:
        table = getattr(getattr(language_model, "model", None), "embed_tokens", None)
        base = getattr(table, "base_layer", None)
        found: torch.Tensor = language_model.embed_input_ids(ids) if base is None else base(ids)
        return found

    return embed
