"""Keep the tokens with the longest feature vectors."""

from dataclasses import dataclass
from typing import ClassVar

from vllm_prune.methods import Assignment, VideoTokens, check_budget


@dataclass(frozen=True, kw_only=True)
class LargestNorm:
    """Keep the tokens of largest norm; `order`: of which norm, above 0."""

    order: float = 2.0
    name: ClassVar[str] = "largest_norm"

    def __post_init__(self) -> None:
        if not self.order > 0:
            raise ValueError(f"order={self.order!r}; use a number above 0")

    def assign(self, tokens: VideoTokens, budget: int) -> Assignment:
        """Exactly `budget` tokens, each kept as it is."""
        check_budget(budget, tokens.num_tokens)
        norm = tokens.features.float().norm(p=self.order, dim=1)
        norm = norm.where(norm.isfinite(), 0.0)  # tokens that hold NaN or Inf come last
        return Assignment.from_kept(norm.topk(budget).indices, tokens.num_tokens)
