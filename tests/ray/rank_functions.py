"""What the tests run on every rank, in Ray's own processes."""

from __future__ import annotations

import os
from typing import Any

import torch

from vllm_prune.serving.worker.rank_check import check_same_on_ranks


def actor_and_process(worker: Any) -> tuple[str, int]:
    import ray

    return ray.get_runtime_context().get_actor_id(), os.getpid()


def keep_the_same(worker: Any) -> None:
    check_same_on_ranks(torch.tensor([2, 3]), "choice behind layer %d", 3)


def keep_own_rank(worker: Any) -> None:
    check_same_on_ranks(torch.tensor([worker.rank, 3]), "choice behind layer %d", 3)
