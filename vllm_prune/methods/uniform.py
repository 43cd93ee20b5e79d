"""Evenly spaced tokens: the baseline that looks at nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from vllm_prune.methods._checks import check_budget
from vllm_prune.methods.base import Assignment, VideoTokens


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Keep tokens floor(i * N / K), i = 0..K-1: evenly spaced in the order time, row, column.

    When N / K shares a factor with the row length this is a set of columns, the same in every frame. That is what
    "uniform" means elsewhere too; `random` is the baseline without the pattern.
    """

    name: ClassVar[str] = "uniform"
    media: ClassVar[tuple[str, ...]] = ("video", "image")

    def assign(self, tokens: VideoTokens, budget: int) -> Assignment:
        """Exactly `budget` evenly spaced tokens, each kept as it is."""
        check_budget(budget, tokens.num_tokens)
        step = torch.arange(budget, device=tokens.features.device)
        return Assignment.from_kept(step * tokens.num_tokens // budget, tokens.num_tokens)
