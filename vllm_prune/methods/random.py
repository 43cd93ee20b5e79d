"""Random tokens: the baseline every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from vllm_prune.methods._checks import check_budget
from vllm_prune.methods.base import Assignment, VideoTokens


@dataclass(frozen=True, kw_only=True)
class Random:
    """Keep K of N tokens, each set equally likely.

    seed: 0 <= seed < 2**63. The same seed, N and K give the same tokens on every device and in every process: the
    permutation is drawn on the CPU from its own generator, and no global state is read or changed.
    """

    seed: int = 0
    name: ClassVar[str] = "random"
    media: ClassVar[tuple[str, ...]] = ("video", "image")

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed!r}; use an integer, 0 <= seed < 2**63")

    def assign(self, tokens: VideoTokens, budget: int) -> Assignment:
        """Exactly `budget` tokens, each kept as it is."""
        check_budget(budget, tokens.num_tokens)
        generator = torch.Generator().manual_seed(self.seed)
        kept = torch.randperm(tokens.num_tokens, generator=generator)[:budget]
        return Assignment.from_kept(kept.to(tokens.features.device), tokens.num_tokens)
