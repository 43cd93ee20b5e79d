"""The configuration of one video on its way from the processor to the model: JSON as a tensor of bytes.

Multimodal items cross process boundaries and caches as tensors, so that is what carries it.
"""

from __future__ import annotations

import torch

from vllm_prune.config import PruneConfig

FIELD = "prune_spec"
"""Name of the field among a video's multimodal inputs."""


def encode_spec(config: PruneConfig) -> torch.Tensor:
    """`config` as uint8 [L]."""
    return torch.frombuffer(bytearray(config.to_json().encode()), dtype=torch.uint8)


def decode_spec(data: torch.Tensor) -> PruneConfig:
    """The configuration that `encode_spec` wrote."""
    return PruneConfig.parse(bytes(data.cpu().tolist()).decode())
