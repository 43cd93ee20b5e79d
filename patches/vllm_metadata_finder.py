"""The finder of the patch `any_vllm_metadata`, apart from it because it is imported at every interpreter start."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.metadata import Distribution, DistributionFinder


class VllmMetadataFinder:
    """Answers for the distribution `vllm`, and for nothing else, once everybody else has been asked."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        """Find no module: this finder knows metadata only."""

    def find_distributions(self, context: DistributionFinder.Context) -> Iterable[Distribution]:
        """Give vLLM's distribution under the name `vllm`, if that very name is asked for (not: all distributions)."""
        if context.name != "vllm":
            return []
        from vllm_prune.patches.any_vllm_metadata import find_alias

        return find_alias(context.path)


def is_installed() -> bool:
    """Whether this process has the finder."""
    return any(isinstance(finder, VllmMetadataFinder) for finder in sys.meta_path)


def install_finder() -> None:
    """Put the finder last, so that real metadata of `vllm` is always preferred."""
    if not is_installed():
        sys.meta_path.append(VllmMetadataFinder())
