"""Layers called one by one run vLLM's fused kernels, during a dense step alone."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
import vllm.kernels  # registers the kernels  # noqa: F401
from torch import nn
from vllm import ir
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.rotary_embedding import get_rope

from vllm_prune.serving.worker.dense.fused_layers import fused_layers, has_fused_kernels, rotary_embeddings

ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}


@pytest.fixture
def rotary() -> Any:
    # What vLLM chooses when it compiles.
    with set_current_vllm_config(VllmConfig(compilation_config=CompilationConfig(custom_ops=["none"]))):
        return get_rope(head_size=16, max_position=64, is_neox_style=True, rope_parameters=ROPE)


def embeddings_of_layers_with(rotary: Any) -> list[Any]:
    """As found in two layers, under a name of their own."""
    found = rotary_embeddings([nn.ModuleDict({"rope": rotary, "norm": nn.Identity()}) for _ in range(2)])
    assert found == [rotary]
    return found


def providers() -> tuple[str, str]:
    x, weight = torch.ones(2, 8), torch.ones(8)
    norm, add_norm = ir.ops.rms_norm, ir.ops.fused_add_rms_norm
    return norm.dispatch(x, weight, 1e-6).provider, add_norm.dispatch(x, x, weight, 1e-6).provider


def test_kernels_run_during_the_step_alone(rotary: Any) -> None:
    plain = rotary._forward_method
    assert plain.__func__ is not type(rotary).forward_cuda
    norms = [op.impls["vllm_c"] for op in (ir.ops.rms_norm, ir.ops.fused_add_rms_norm)]
    with mock.patch.object(norms[0], "supported", True), mock.patch.object(norms[1], "supported", True):
        assert providers() == ("native", "native")
        with pytest.raises(ZeroDivisionError), fused_layers(embeddings_of_layers_with(rotary)):  # noqa: PT012
            assert providers() == ("vllm_c", "vllm_c")
            assert rotary._forward_method.__func__ is type(rotary).forward_cuda
            raise ZeroDivisionError
        assert providers() == ("native", "native")
    assert rotary._forward_method == plain


def test_kernels_that_another_order_puts_first_stay_first() -> None:
    norm = ir.ops.rms_norm
    with mock.patch.object(norm.impls["vllm_c"], "supported", True), norm.set_priority(["vllm_c", "native"]):
        before = norm.get_priority()
        with fused_layers([]):
            assert norm.get_priority() == before


def test_a_cpu_keeps_what_it_has(rotary: Any) -> None:
    assert not has_fused_kernels()
    with fused_layers(embeddings_of_layers_with(rotary)):
        assert providers() == ("native", "native")
        with set_current_vllm_config(VllmConfig()):
            assert torch.equal(RMSNorm(8)(torch.ones(2, 8)), torch.ones(2, 8).mul(1 / (1 + 1e-6) ** 0.5))
