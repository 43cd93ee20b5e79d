"""The NVIDIA GPUs of this machine, asked without torch, which takes seconds to import, and without a context on one."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

_TIMEOUT_S = 30
_QUERY = ["nvidia-smi", "--query-gpu=memory.total,compute_cap,name", "--format=csv,noheader,nounits"]


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    name: str
    memory: int
    """Bytes."""
    capability: tuple[int, int]
    """Compute capability: 8, 0 for an A100."""


def list_gpus() -> list[Gpu]:
    """All GPUs that the driver shows; none where there is no driver."""
    try:
        answer = subprocess.run(_QUERY, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S).stdout
        return [_parse(line) for line in answer.splitlines() if line.strip()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def _parse(line: str) -> Gpu:
    mebibytes, capability, name = (part.strip() for part in line.split(",", 2))
    major, minor = capability.split(".")
    return Gpu(name, int(mebibytes) << 20, (int(major), int(minor)))
