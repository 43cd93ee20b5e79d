"""The part of a configuration that says how many frames of a video are sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm_prune.config.checks import require_int
from vllm_prune.config.errors import PruneConfigError

DEFAULT_MOST = 768
"""Frames that are sampled at the most where a configuration does not say; vLLM's own limit for Qwen's models."""
MAX_FRAMES = 65_536
"""The largest `max`."""


@dataclass(frozen=True, kw_only=True)
class FramesConfig:
    """As many frames of each video are sampled as its kept tokens allow."""

    tokens: int
    """Tokens that a video keeps at the most, which its number of frames follows; text between them not counted."""
    max: int | None = None
    """Frames that are sampled at the most; None: `DEFAULT_MOST`."""

    def __post_init__(self) -> None:
        require_int("frames.tokens", self.tokens, 1)
        if self.max is not None and require_int("frames.max", self.max, 2) > MAX_FRAMES:
            raise PruneConfigError(f"frames.max={self.max}: must be {MAX_FRAMES} or less")

    @property
    def most(self) -> int:
        """Frames that are sampled at the most."""
        return DEFAULT_MOST if self.max is None else self.max

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready mapping without the fields left at their defaults."""
        return {"tokens": self.tokens} | ({} if self.max is None else {"max": self.max})
