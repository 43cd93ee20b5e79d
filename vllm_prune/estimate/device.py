"""The memory that requests can share: of the GPU, or else of the machine."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

from vllm_prune.estimate.dims import EstimateError

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
    """Asked without torch, which takes seconds to import, and without opening a context on the GPU."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
        name, _, mebibytes = answer.strip().splitlines()[0].rpartition(",")
        return Device(name.strip(), int(mebibytes) << 20)
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None


def kv_space(device: Device, weight_bytes: int) -> int:
    """Bytes left for KV blocks beside the weights; activations, which depend on the batch, are not subtracted."""
    return max(0, int(device.memory * UTILIZATION) - weight_bytes)
