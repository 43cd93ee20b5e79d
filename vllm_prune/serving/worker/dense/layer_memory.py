"""How much memory a decoder layer takes for a row while it runs."""

from __future__ import annotations

from torch import nn


def inner_width(layer: nn.Module) -> int:
    """Elements that the widest part of a layer holds for a row between its input and its output."""
    modules = list(layer.modules())
    # What a projection yields, and again what an activation makes of it.
    linear = [
        2 * module.output_size_per_partition for module in modules if hasattr(module, "output_size_per_partition")
    ]
    return max(linear + [_experts_width(module) for module in modules])


def _experts_width(module: nn.Module) -> int:
    """Of a mixture of experts: a row's copies for its experts, gate and up projections, and what comes of them."""
    config = getattr(module, "moe_config", None)
    if config is None:
        return 0
    return config.experts_per_token * (2 * config.hidden_dim + 3 * config.intermediate_size_per_partition)
