"""On CPUs, let Gated DeltaNet verify fewer drafts than a step may have without losing the place of its convolution."""

import dataclasses
import functools
import inspect
import sys
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_signature, require_source

_MODULE = "vllm.model_executor.layers.mamba.ops.cpu.gdn_attention"
_TARGET = f"{_MODULE}:_spec_forward"
_MARK = "_vllm_prune_fills_up_drafts"
_KEPT = "keep = B[:, offset + 1 : offset + 1 + (state_len - q_i)]"
_MENDED = "B[:, : width - 2 + q_i] = conv_in[0, :, 1:]"
"""As vLLM 0.33 has it, which needs no patch."""
_PARAMETERS = "(layer, attn_metadata_i, mixed_qkv_spec, b_spec, a_spec, conv_buf, ssm_state, width, state_len)"


def _module() -> Any:
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    return gdn_attention


def _needed() -> bool:
    from vllm.platforms import current_platform

    function = getattr(_module(), "_spec_forward", None) if current_platform.is_cpu() else None
    return function is not None and _KEPT in inspect.getsource(function)


def _applied() -> bool:
    # Asked on GPU machines too, where this module is never imported.
    return _MODULE in sys.modules and hasattr(getattr(_module(), "_spec_forward", None), _MARK)


def _verify() -> None:
    function = _module()._spec_forward
    require_signature(function, _PARAMETERS, _TARGET)
    if _MENDED in inspect.getsource(function):
        return
    read = (
        "offset = int(num_acc_cpu[i].item()) - 1",
        "prior = B[:, offset : offset + (width - 1)]",
        _KEPT,
    )
    metadata = ("spec_qsl = attn_metadata_i.spec_query_start_loc", "cu = spec_qsl[: num_spec_decodes + 1]")
    require_source(function, (*read, *metadata), _TARGET)


def _install() -> None:
    import torch

    module = _module()
    original = module._spec_forward

    @functools.wraps(original)
    def _spec_forward(
        layer: Any, metadata: Any, qkv: Any, b: Any, a: Any, buffer: Any, states: Any, width: int, length: int
    ) -> Any:
        count, most = metadata.num_spec_decodes, length - width + 2  # rows of a sequence: a token and all its drafts
        starts = metadata.spec_query_start_loc[: count + 1]
        own = starts.diff()
        if bool((own == most).all()):
            return original(layer, metadata, qkv, b, a, buffer, states, width, length)
        # A sequence's last row is repeated: behind all that may be accepted, where the next step writes at any rate.
        step = torch.arange(most)
        rows = (starts[:-1, None] + step.minimum(own[:, None] - 1)).flatten()
        filled = torch.arange(0, most * (count + 1), most, dtype=starts.dtype)
        full = dataclasses.replace(metadata, spec_query_start_loc=filled)
        out = original(layer, full, qkv[rows], b[rows], a[rows], buffer, states, width, length)
        return out[(step < own[:, None]).flatten()]

    setattr(_spec_forward, _MARK, True)
    module._spec_forward = _spec_forward


PATCH = Patch(
    name="worker_cpu_draft_states",
    target=_TARGET,
    process="worker, on the CPU",
    trigger=_MODULE,
    why=(
        "Gated DeltaNet writes the inputs of its convolution to the end of a buffer and looks for them, a step later, "
        "where they stand after a step with all its drafts. With fewer, which n-grams give, it reads others: answers "
        "differ from the third token on, or a copy fails on its shape. vLLM's kernels for GPUs allow for it."
    ),
    how=(
        "Wraps the function: a sequence with fewer drafts gets repeats of its last row, so that each has as many as "
        "the buffer is made for; what comes out of them is left out."
    ),
    upstream=(
        "https://github.com/vllm-project/vllm/pull/46090",
        "https://github.com/vllm-project/vllm/issues/39273",
    ),
    remove_when="vllm>=0.33",
    needed=_needed,
    applied=_applied,
    verify=_verify,
    install=_install,
)
