"""Fused kernels for layers that run outside the compiled model.

When vLLM compiles the model it leaves RMSNorm and the rotary embedding to the compiler, as plain PyTorch operations. A
dense step calls layers one by one, where nothing compiles these: a norm is about eleven kernels in float32 then. For as
long as such a step runs, vLLM's own kernels for uncompiled models take their place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from vllm import envs, ir
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase
from vllm.platforms import current_platform

_KERNEL = "vllm_c"
"""vLLM's name for the kernels that it compiles ahead of time."""
_PLAIN = "native"
"""vLLM's name for plain PyTorch operations."""


def has_fused_kernels() -> bool:
    """Whether the platform has them, and the user did not ask for others."""
    return current_platform.is_cuda() and not envs.VLLM_BATCH_INVARIANT


def rotary_embeddings(layers: Iterable[nn.Module]) -> list[RotaryEmbeddingBase]:
    """Those of decoder layers, each once: layers with the same parameters share one."""
    found = (module for layer in layers for module in layer.modules() if isinstance(module, RotaryEmbeddingBase))
    return list({id(module): module for module in found}.values())


@contextlib.contextmanager
def fused_layers(rotary: Iterable[RotaryEmbeddingBase]) -> Iterator[None]:
    """Norms of any layer, and the rotary embeddings `rotary`, run fused kernels."""
    with contextlib.ExitStack() as stack:
        for operation in (ir.ops.rms_norm, ir.ops.fused_add_rms_norm):
            stack.enter_context(operation.set_priority(_kernel_first(operation)))
        for embedding in rotary:
            stack.enter_context(_on_cuda(embedding))
        yield


def _kernel_first(operation: Any) -> list[str]:
    """vLLM's priorities, with its kernel before plain operations."""
    priority = operation.get_priority() or [_PLAIN]
    if _KERNEL in priority or _KERNEL not in operation.impls:
        return priority
    place = priority.index(_PLAIN) if _PLAIN in priority else len(priority)
    return [*priority[:place], _KERNEL, *priority[place:]]


@contextlib.contextmanager
def _on_cuda(rotary: Any) -> Iterator[None]:
    chosen = rotary._forward_method
    rotary._forward_method = rotary.forward_cuda
    try:
        yield
    finally:
        rotary._forward_method = chosen
