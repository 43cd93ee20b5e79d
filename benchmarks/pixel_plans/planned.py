"""The comparison that shows what not encoding costs: everything is encoded, then the same cells are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch

from vllm_prune.methods import registry
from vllm_prune.methods.base import Assignment, VideoTokens, compact
from vllm_prune.methods.merge_frames import merge_frames

NAME = "planned"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """Keep the tokens of `cells` (increasing indices), then merge within frames as stage 1 on pixels does."""

    cells: Sequence[int]
    cluster_ratio: float

    name: ClassVar[str] = NAME

    def assign(self, tokens: VideoTokens, budget: int) -> Assignment:
        """Exactly `budget` slots."""
        cells = torch.tensor(self.cells, device=tokens.features.device)
        chosen = Assignment.from_kept(cells, tokens.num_tokens)
        merged = merge_frames(compact(tokens, chosen), budget, self.cluster_ratio)
        slot = torch.full_like(chosen.slot, -1)
        slot[cells] = merged.slot
        return Assignment(slot, cells[merged.anchor])


def register() -> None:
    """Makes the method known in this process, which has to be the engine's too."""
    known = {**registry._BUILT_IN, NAME: f"{__name__}:{Planned.__name__}"}
    registry._BUILT_IN = MappingProxyType(known)
