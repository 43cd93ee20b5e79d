"""Whether the vision encoder has attention to show to a method that looks at it."""

from __future__ import annotations

from typing import Any

from vllm_prune.config import PruneConfig, PruneConfigError
from vllm_prune.serving.wire.settings import read_hidden_encoder


def check_encoder_is_readable(config: PruneConfig, hf_config: Any) -> None:
    """Raises PruneConfigError where this server's encoder does not show its attention and `config` needs it."""
    reason = read_hidden_encoder(hf_config)
    if reason and config.needs_encoder_attention:
        raise PruneConfigError(f"method={config.method!r}: {reason}")


def check_encoder_runs(config: PruneConfig, has_pixels: bool) -> None:
    """Raises PruneConfigError for precomputed embeddings where `config` needs the encoder that never sees them."""
    if config.needs_encoder_attention and not has_pixels:
        raise PruneConfigError(
            f"method={config.method!r}: needs the attention inside the vision encoder, and this request brings "
            f"precomputed embeddings, which come from an encoder elsewhere; send the medium itself, or choose another "
            f"method"
        )
