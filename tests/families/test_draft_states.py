"""`worker_cpu_draft_states`: Gated DeltaNet by vLLM's kernels for CPUs, in steps of any number of drafts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_prune.patches import apply_all
from vllm_prune.patches.base import State
from vllm_prune.patches.worker_cpu_draft_states import PATCH

HEADS, DIM, WIDTH, DRAFTS, TOKENS = 2, 64, 4, 3, 12
COLUMNS = HEADS * DIM


@pytest.fixture(scope="module", autouse=True)
def patched() -> None:
    apply_all()
    if PATCH.state() is State.NOT_NEEDED:
        pytest.skip("vLLM has no such fault here")


def layer() -> Any:
    def apart(qkv: torch.Tensor) -> list[torch.Tensor]:
        return [part.reshape(1, -1, HEADS, DIM) for part in qkv.split(COLUMNS, dim=-1)]

    weight = 0.4 * torch.randn(3 * COLUMNS, 1, WIDTH, dtype=torch.bfloat16)
    return SimpleNamespace(
        conv1d=SimpleNamespace(weight=weight, bias=None),
        activation="silu",
        rearrange_mixed_qkv=apart,
        A_log=torch.randn(HEADS) - 1,
        dt_bias=torch.ones(HEADS, dtype=torch.bfloat16),
    )


def outputs(function: Any, own: Any, tokens: tuple[torch.Tensor, ...], steps: list[int]) -> torch.Tensor:
    """[TOKENS, HEADS, DIM] of one sequence that accepts all of each step."""
    from vllm.v1.attention.backends.gdn_attn import GDNAttentionMetadata

    length = WIDTH - 1 + DRAFTS
    buffer = torch.zeros(DRAFTS + 2, 3 * COLUMNS, length, dtype=torch.bfloat16)
    states = torch.zeros(DRAFTS + 2, HEADS, DIM, DIM)
    found, start, accepted = [], 0, 1
    for count in steps:
        metadata = GDNAttentionMetadata(
            **dict.fromkeys(("num_prefills", "num_prefill_tokens", "num_decodes", "num_decode_tokens"), 0),
            num_spec_decodes=1,
            num_spec_decode_tokens=count,
            num_actual_tokens=count,
            spec_query_start_loc=torch.tensor([0, count], dtype=torch.int32),
            spec_state_indices_tensor=torch.arange(1, DRAFTS + 2, dtype=torch.int32)[None],
            num_accepted_tokens=torch.tensor([accepted], dtype=torch.int32),
        )
        rows = [part[start : start + count] for part in tokens]
        found.append(function(own, metadata, *rows, buffer, states, WIDTH, length).reshape(count, HEADS, DIM))
        start, accepted = start + count, count
    return torch.cat(found).float()


@pytest.mark.parametrize("steps", [[1] * 12, [2] * 6, [1, 4, 2, 1, 3, 1]])
def test_steps_with_fewer_drafts_give_what_full_ones_do_and_without_the_patch_they_do_not(steps):
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    torch.manual_seed(0)
    own = layer()
    tokens = (
        torch.randn(TOKENS, 3 * COLUMNS, dtype=torch.bfloat16),
        torch.randn(TOKENS, HEADS, dtype=torch.bfloat16),
        torch.randn(TOKENS, HEADS, dtype=torch.bfloat16),
    )
    patched, original = gdn_attention._spec_forward, gdn_attention._spec_forward.__wrapped__
    full = outputs(original, own, tokens, [DRAFTS + 1] * 3)
    assert (outputs(patched, own, tokens, steps) - full).abs().max() < 0.02 * full.abs().max()
    if sum(steps[:2]) == 5:  # longer than what is left of the buffer
        with pytest.raises(RuntimeError, match="size of tensor"):
            outputs(original, own, tokens, steps)
    else:
        assert (outputs(original, own, tokens, steps) - full).abs().max() > 0.2 * full.abs().max()
