"""The attention of a decoder layer: which kinds are refused, and that it is taken over for one call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from vllm.model_executor.layers.attention import Attention, ChunkedLocalAttention, MLAAttention
from vllm.model_executor.layers.mamba.mamba_mixer2 import MambaMixer2
from vllm.v1.attention.backend import AttentionType

from vllm_prune.config import PruneConfigError
from vllm_prune.serving.worker.dense.attention import find_attention, taken_over

SERVED = {"attn_type": AttentionType.DECODER, "use_mm_prefix": False, "kv_sharing_target_layer_name": None}


def make(kind: type[nn.Module], **fields: Any) -> Any:
    """A module of vLLM's without its constructor, which asks for a model and a backend."""
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    for name, value in (SERVED | fields).items():
        setattr(module, name, value)
    return module


def layer_with(*modules: nn.Module) -> nn.Module:
    """A layer that calls its parts what it likes."""
    return nn.ModuleDict({"norm": nn.Identity(), "mixer": nn.ModuleList(modules)})


REFUSED = {
    "none": ([], "it has 0 modules of attention"),
    "two": ([make(Attention), make(Attention)], "it has 2 modules of attention"),
    "latent": ([make(MLAAttention)], "MLAAttention keeps latent vectors"),
    "state": ([make(MambaMixer2)], "MambaMixer2 keeps a state, from which no token can be dropped"),
    "chunks": ([make(ChunkedLocalAttention)], "ChunkedLocalAttention attends to other tokens than all before"),
    "both ways": ([make(Attention, attn_type=AttentionType.ENCODER_ONLY)], "not causal, but of type encoder_only"),
    "both ways in media": ([make(Attention, use_mm_prefix=True)], "both ways inside an image or a video"),
    "another's": (
        [make(Attention, kv_sharing_target_layer_name="layers.0")],
        "no keys and values but those of layers.0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_attention_that_is_not_over_all_tokens_is_refused(case: str) -> None:
    modules, message = REFUSED[case]
    with pytest.raises(PruneConfigError, match=f"layer 3 of the decoder: .*{message}.*query-free"):
        find_attention(layer_with(*modules), "layer 3")


def test_attention_is_found_whatever_its_name() -> None:
    attention = make(Attention)
    assert find_attention(layer_with(attention), "layer 0") is attention


def test_a_call_is_taken_over_and_given_back() -> None:
    attention = make(Attention, layer_name="layers.0")
    query, key = torch.ones(2, 4, 8), torch.ones(2, 16)
    with taken_over(attention, lambda q, k, v: q.sum() + k.sum() + v.sum()):
        assert attention(query, key, key) == 64 + 32 + 32
    assert "forward" not in vars(attention)
    with pytest.raises(ZeroDivisionError), taken_over(attention, lambda q, k, v: 1 / 0):
        attention(query, key, key)
    assert "forward" not in vars(attention)


def test_what_another_put_in_its_place_comes_back() -> None:
    attention = make(Attention, layer_name="layers.0", forward=lambda *_: "another's")
    with taken_over(attention, lambda q, k, v: q):
        attention(*[torch.ones(2, 4)] * 3)
    assert attention(1, 2, 3) == "another's"


@pytest.mark.parametrize("calls", [0, 2])
def test_a_layer_that_does_not_call_it_once_is_noticed(calls: int) -> None:
    attention = make(Attention, layer_name="layers.0")

    def run() -> None:
        with taken_over(attention, lambda q, k, v: q):
            for _ in range(calls):
                attention(*[torch.ones(2, 4)] * 3)

    with pytest.raises(RuntimeError, match=f"layers.0: its layer called it {calls} times"):
        run()
