"""The memory that requests can share: of the GPU, or else of the machine."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vllm_prune.estimate.text_dims import EstimateError
from vllm_prune.gpus import list_gpus

GIB = 1 << 30
UTILIZATION = 0.92
"""Share of a device's memory that vLLM takes by default."""


@dataclass(frozen=True)
class Device:
    """Where the model is to run."""

    name: str
    memory: int
    """Bytes."""


def read_device(memory_gib: float | None = None) -> Device:
    """The device at hand, or one of `memory_gib` GiB."""
    if memory_gib is not None:
        if not memory_gib > 0:
            raise EstimateError(f"memory={memory_gib!r}: must be above 0, in GiB")
        return Device(f"a device of {memory_gib:g} GiB", int(memory_gib * GIB))
    return _first_gpu() or Device("this machine's CPU", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _first_gpu() -> Device | None:
    gpus = list_gpus()
    return Device(gpus[0].name, gpus[0].memory) if gpus else None


def kv_space(device: Device, weight_bytes: int) -> int:
    """Bytes left for KV blocks beside the weights; activations, which depend on the batch, are not subtracted."""
    return max(0, int(device.memory * UTILIZATION) - weight_bytes)
