"""Gated DeltaNet in float32 on a CPU, where vLLM's kernels take bfloat16 only: Hugging Face's functions in their place.

    LLM(worker_extension_cls="float32_deltanet.Worker", dtype="float32", ...)

Only the arithmetic is replaced. Which states a step reads, where it writes them and which blocks hold them stays
vLLM's; that is what tests of cold, cached, chunked and preempted requests are about. Every worker imports this module
before it makes its model.
"""

from __future__ import annotations

import inspect
import itertools
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_chunk_gated_delta_rule, torch_recurrent_gated_delta_rule
from vllm import _custom_ops
from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention


class Worker:
    """Nothing to add to vLLM's own: importing this is what counts."""


def fused_gdn_gating_cpu(A_log: Tensor, a: Tensor, b: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm of the decay and step size, both [1, n, value heads]."""
    decay = -A_log.float().exp() * torch.nn.functional.softplus(a.float() + dt_bias)
    return decay[None], b.sigmoid()[None]


def chunk_gated_delta_rule_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor,
    cu_seqlens: Tensor,
    initial_state_indices: Tensor,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Sequences one after the other [1, n, ...]; states [slots, value heads, key dim, value dim] change in place."""
    out = torch.empty_like(value)
    for slot, (start, stop) in zip(
        initial_state_indices.tolist(), itertools.pairwise(cu_seqlens.tolist()), strict=True
    ):
        if start == stop:
            continue
        state = initial_state[slot][None]
        rows = [part[:, start:stop] for part in (query, key, value, g, beta)]
        out[:, start:stop], initial_state[slot] = _run(torch_chunk_gated_delta_rule, *rows, state)
    return out, initial_state


def fused_sigmoid_gating_delta_rule_update_cpu(
    A_log: Tensor,
    dt_bias: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    initial_state_source: Tensor,
    initial_state_indices: Tensor,
    **_: Any,
) -> Tensor:
    """One token of each sequence: [n, 1, value heads, value dim]."""
    decay, beta = fused_gdn_gating_cpu(A_log, a, b, dt_bias)
    slots = initial_state_indices.long()
    rows = [part.transpose(0, 1) for part in (q, k, v, decay, beta)]
    out, initial_state_source[slots] = _run(torch_recurrent_gated_delta_rule, *rows, initial_state_source[slots])
    return out


def fused_sigmoid_gating_delta_rule_update_spec_cpu(
    A_log: Tensor,
    dt_bias: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    initial_state_source: Tensor,
    spec_state_indices: Tensor,
    num_accepted_tokens: Tensor,
    cu_seqlens: Tensor,
    **_: Any,
) -> Tensor:
    """Drafted tokens [n, ...] of each sequence, the state after each in a slot of its own."""
    decay, beta = fused_gdn_gating_cpu(A_log, a, b, dt_bias)
    out = torch.empty_like(v)
    for index, (start, stop) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
        slots = spec_state_indices[index].tolist()
        state = initial_state_source[slots[int(num_accepted_tokens[index]) - 1]][None].clone()
        for token in range(start, stop):
            rows = [part[None, token : token + 1] for part in (q, k, v, decay[0], beta[0])]
            done, state = _run(torch_recurrent_gated_delta_rule, *rows, state)
            out[token] = done[0, 0]
            initial_state_source[slots[token - start]] = state[0]
    return out


def _run(
    rule: Any, query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    shared = value.shape[2] // key.shape[2]
    query, key = (part.repeat_interleave(shared, dim=2) for part in (query, key))
    return rule(
        query,
        key,
        value,
        g=decay,
        beta=beta,
        initial_state=state,
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )


def causal_conv1d_weight_pack(weight: Tensor) -> Tensor:
    """[dim, 1, width] of [dim, width], not packed; vLLM 0.31 packs weights of any precision."""
    return weight[:, None]


def causal_conv1d_fwd(*, weight: Tensor, silu_activation: bool, **more: Any) -> Tensor:
    """vLLM's own in PyTorch."""
    for name in ("is_weight_packed", "is_vnni"):  # the second in vLLM 0.31
        more.pop(name, None)
    return gdn_attention.causal_conv1d_torch(
        weight=weight.flatten(1), activation="silu" if silu_activation else None, **more
    )


def causal_conv1d_update(
    *, x: Tensor, weight: Tensor, conv_states: Tensor, conv_state_indices: Tensor, **more: Any
) -> Tensor:
    """One token [n, dim] of each sequence; the states [slots, dim, width - 1] move on."""
    sequences = len(x)
    return causal_conv1d_fwd(
        x=x.T,
        weight=weight,
        conv_states=conv_states,
        query_start_loc=torch.arange(sequences + 1),
        cache_indices=conv_state_indices,
        has_initial_state=torch.ones(sequences, dtype=torch.bool),
        **more,
    ).T


def _update_in_place_of_the_vector_kernel(*, conv_state: Tensor, activation: str | None, **more: Any) -> Tensor:
    return causal_conv1d_update(conv_states=conv_state, silu_activation=activation == "silu", **more)


def _install() -> None:
    kernels = (
        chunk_gated_delta_rule_cpu,
        fused_gdn_gating_cpu,
        fused_sigmoid_gating_delta_rule_update_cpu,
        fused_sigmoid_gating_delta_rule_update_spec_cpu,
    )
    core = inspect.getsource(gdn_attention.cpu_gdn_attention_core)
    # Without asserts, one of which is that it gets bfloat16.
    exec(compile(core, gdn_attention.__file__, "exec", optimize=1, flags=0, dont_inherit=True), vars(gdn_attention))
    gdn_attention.ops = SimpleNamespace(**{kernel.__name__: kernel for kernel in kernels})
    _custom_ops.causal_conv1d_weight_pack = causal_conv1d_weight_pack
    gdn_attention._causal_conv1d_fwd_cpu = causal_conv1d_fwd
    gdn_attention._causal_conv1d_update_cpu = causal_conv1d_update
    gdn_attention.causal_conv1d_update_cpu = _update_in_place_of_the_vector_kernel


_install()
