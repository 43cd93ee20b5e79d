"""Run a function right after some module has been imported, without importing that module now.

A patch that imported its target would load vLLM's worker into the API server, or torch into every `python -c`. Waiting
also gives the earliest safe moment: the target is complete, and nobody else has used it yet.

This module is imported at every interpreter start. `importlib.abc` alone would take longer than all the rest, so the
two protocols below are written without their base classes, and `typing` is left out.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType


class _AfterImportFinder:
    """Finds nothing itself; wraps the loader that the other finders give for a module somebody waits for."""

    def __init__(self) -> None:
        self.waiting: dict[str, list[Callable[[], object]]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Give the other finders' spec, with our loader around theirs; None for a module nobody waits for."""
        if fullname not in self.waiting:
            return None
        spec = self._ask_other_finders(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _AfterImportLoader(spec.loader, self.waiting[fullname])  # type: ignore[assignment]
        return spec

    def _ask_other_finders(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)) is not None:
                return spec
        return None


class _AfterImportLoader:
    """Loads with the real loader, then calls the waiting functions; what they raise fails the import."""

    def __init__(self, real: Loader, functions: list[Callable[[], object]]) -> None:
        self.real = real
        self.functions = functions

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave the choice to the real loader."""
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module as if we were not here, then call the functions."""
        module.__loader__ = self.real  # inspect and importlib.resources read this one and the next
        if module.__spec__ is not None:
            module.__spec__.loader = self.real
        self.real.exec_module(module)
        for function in self.functions:
            function()


_finder = _AfterImportFinder()


def run_after_import(module: str, function: Callable[[], object]) -> None:
    """Call `function` after each import of `module`: at once if it is imported already, else when it will be."""
    functions = _finder.waiting.setdefault(module, [])
    if function not in functions:
        functions.append(function)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    if module in sys.modules:
        function()
