"""A check for debugging that all tensor-parallel ranks keep the same tokens.

Every rank chooses for itself, from importance that was reduced over all of them, and ranks that chose differently would
answer nonsense without any error. With VLLM_PRUNE_CHECK_RANKS=1 in the server's environment they compare digests of
what they keep, of every video when it is encoded and of every choice of a question, and the step fails where they
differ. It costs one small exchange between the ranks each time.
"""

from __future__ import annotations

import hashlib
import os

import torch
from vllm.distributed import get_tp_group
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

CHECK_RANKS = "VLLM_PRUNE_CHECK_RANKS"


class RanksDisagreeError(RuntimeError):
    """Tensor-parallel ranks keep different tokens."""


def check_same_on_ranks(kept: torch.Tensor, step: str, *names: object) -> None:
    """Compares `kept` with the other ranks', if VLLM_PRUNE_CHECK_RANKS asks for it. Every rank has to call it.

    Args:
        kept: Indices [m] of what stays.
        step: What is being done, for the message, with a %-place for each of `names`.
        names: Filled into `step`.

    Raises:
        RanksDisagreeError: On every rank, if any two differ.
    """
    if os.environ.get(CHECK_RANKS, "0") == "0" or get_tp_group().world_size == 1:
        return
    digests: list[str] = [""] * get_tp_group().world_size
    with gpu_sync_allowed():
        own = _digest(kept)
    torch.distributed.all_gather_object(digests, own, group=get_tp_group().cpu_group)
    if len(set(digests)) > 1:
        found = ", ".join(f"rank {rank}: {digest}" for rank, digest in enumerate(digests))
        raise RanksDisagreeError(
            f"{step % names}: the tensor-parallel ranks keep different tokens ({found}); {CHECK_RANKS} found this. "
            "Check that all nodes run the same versions (`vllm-prune doctor`) on the same kind of device"
        )


def _digest(kept: torch.Tensor) -> str:
    """Count and SHA-256, shortened, of indices."""
    indices = kept.detach().to("cpu", torch.int64).contiguous()
    return f"{len(indices)} tokens {hashlib.sha256(indices.numpy().tobytes()).hexdigest()[:16]}"
