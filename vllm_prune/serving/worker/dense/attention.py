"""The attention of a decoder layer: found by its type, and taken over for the length of a call of the layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn
from vllm.model_executor.layers.attention import Attention, MLAAttention
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.layers.mamba.gdn.base import GatedDeltaNetAttention
from vllm.v1.attention.backend import AttentionType

from vllm_prune.config import PruneConfigError

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Of queries [n, H * D], keys [n, G * D] and values [n, G * D], this rank's heads: [n, H * D]."""


def find_attention(layer: nn.Module, name: str) -> Attention:
    """The attention of a decoder layer.

    Raises:
        PruneConfigError: It has none, several, or one that a dense prefix cannot take over; `name`: of the layer.
    """
    found = [module for module in layer.modules() if isinstance(module, AttentionLayerBase)]
    reason = f"it has {len(found)} modules of attention" if len(found) != 1 else _why_not(found[0])
    if reason:
        raise PruneConfigError(
            f'{name} of the decoder: method "attention" needs full attention over all tokens in every layer, and '
            f"{reason}; choose a query-free method and --prune-override tighten"
        )
    return found[0]


def find_states(layer: nn.Module) -> GatedDeltaNetAttention | None:
    """The Gated DeltaNet of a decoder layer that has one in place of attention."""
    found = [module for module in layer.modules() if isinstance(module, AttentionLayerBase)]
    return found[0] if len(found) == 1 and isinstance(found[0], GatedDeltaNetAttention) else None


def _why_not(attention: AttentionLayerBase) -> str:
    """Why a dense prefix cannot take `attention` over; empty if it can."""
    kind = type(attention).__name__
    if isinstance(attention, MambaBase):
        return f"{kind} keeps a state, from which no token can be dropped"
    if isinstance(attention, MLAAttention):
        return f"{kind} keeps latent vectors in place of keys and values"
    if type(attention) is not Attention:
        return f"{kind} attends to other tokens than all before, or keeps something else than their keys and values"
    if attention.attn_type != AttentionType.DECODER:
        return f"{kind} is not causal, but of type {attention.attn_type.value}"
    if attention.use_mm_prefix:
        return f"{kind} attends both ways inside an image or a video"
    if attention.kv_sharing_target_layer_name is not None:
        return f"{kind} has no keys and values but those of {attention.kv_sharing_target_layer_name}"
    return ""


@contextlib.contextmanager
def taken_over(attention: Attention, attend: Attend) -> Iterator[None]:
    """Calls of `attention` run `attend` instead.

    Raises:
        RuntimeError: There was none, or more than one.
    """
    calls = 0

    def forward(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return attend(query.flatten(1), key.flatten(1), value.flatten(1))

    own = vars(attention).get("forward")
    attention.forward = forward  # an attribute of the instance, which `nn.Module.__call__` finds first
    try:
        yield
    finally:
        del attention.forward
        if own is not None:
            attention.forward = own
    if calls != 1:
        raise RuntimeError(f"{attention.layer_name}: its layer called it {calls} times; a dense prefix needs one call")
