"""Select, then merge: a combinator that loses nothing a selector drops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vllm_prune.methods._numerics import invert, to_finite
from vllm_prune.methods.base import Assignment, Method, VideoTokens

_NUMBERS_AT_ONCE = 8 << 20  # similarities, or channels of what is compared
MOST_PAIRS = 1 << 26
"""What `check_work` allows: half of 16,384 tokens kept, some seconds on a few CPU cores."""


@dataclass(frozen=True)
class MergeDropped:
    """`method`, with each token it drops merged into the kept token it is most like (cosine; ties keep the earlier).

    Zero vectors, and tokens with NaN or Inf, are like nothing: they stay dropped. Time grows as dropped * kept; the
    similarities are made in pieces, and beside them the kept tokens are held in float32.
    """

    method: Method

    @property
    def name(self) -> str:
        """The name of the method inside, marked."""
        return f"{self.method.name}+merge"

    @property
    def relevance(self) -> str:
        """Whether the method inside uses a relevance."""
        return getattr(self.method, "relevance", "unused")

    def check_work(self, num_tokens: int, budget: int) -> None:
        """Raise ValueError where comparing every dropped token with every kept one takes too long for a server."""
        pairs = budget * (num_tokens - budget)
        if pairs > MOST_PAIRS:
            raise ValueError(
                f"merge_dropped=True compares {num_tokens - budget} dropped tokens with {budget} kept ones, {pairs} "
                f"pairs; use a video or a budget with {MOST_PAIRS} or fewer, or merge_dropped=False"
            )

    def assign(self, tokens: VideoTokens, budget: int, **given: Any) -> Assignment:
        """Exactly `budget` slots; `given` (such as `relevance`) goes to the method inside."""
        chosen = self.method.assign(tokens, budget, **given)
        dropped = (chosen.slot < 0).nonzero().squeeze(1)
        slot = chosen.slot.clone()
        slot[dropped] = nearest_slot(tokens.features, dropped, chosen.anchor)
        return Assignment(slot, chosen.anchor)


def nearest_slot(features: Tensor, dropped: Tensor, anchor: Tensor) -> Tensor:
    """[M] int64: for each of `dropped` [M] the place in `anchor` [K] of the most similar token, -1 if like nothing."""
    kept, norm = to_finite(features[anchor])
    units = kept.mul_(invert(norm)[:, None]).mT  # `kept` is a copy already
    found = [torch.empty_like(dropped[:0])]
    for rows in dropped.split(max(1, _NUMBERS_AT_ONCE // max(len(anchor), features.shape[1]))):
        mine, length = to_finite(features[rows])
        nearest = (mine @ units).masked_fill_(norm == 0, -torch.inf).argmax(1)
        found.append(nearest.masked_fill((length == 0) | (norm[nearest] == 0), -1))
    return torch.cat(found)
