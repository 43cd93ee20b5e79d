"""How much of what was decided is kept on disk."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_prune.config import PruneConfigError, brief


@dataclass(frozen=True, kw_only=True)
class TraceLimits:
    """What the folder of traces may hold; the oldest make room for the next."""

    files: int = 1000
    bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for name in ("files", "bytes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise PruneConfigError(f"trace_limits.{name}={brief(value)}: must be an integer of 1 or more")
