"""Runs the checks of the patches on source: `_verify` of each, with vLLM's modules read from a `Tree`.

A patch's module is executed again with an `import` that hands out stand-ins for what is vLLM's, and an `inspect` that
knows them; everything else is real.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compat_tree import Function, Symbol, Tree

from vllm_prune.patches.base import Patch, PatchError
from vllm_prune.patches.registry import MODULES

# What vLLM makes at import time, by the class of which it is an instance on the CPU.
INSTANCES = {"vllm.platforms:current_platform": "vllm.platforms.cpu:CpuPlatform"}


class Checked:
    """What became of one patch's checks."""

    def __init__(self, patch: Patch) -> None:
        self.patch = patch
        self.broken = ""
        self.used: dict[str, Symbol] = {}
        """What the checks looked at, by "module:name"."""


@functools.cache
def check_patches(tree: Tree) -> list[Checked]:
    """The patches of vLLM, checked against a version of it."""
    return [checked for name in MODULES if (checked := _check(tree, name)) is not None]


def _check(tree: Tree, name: str) -> Checked | None:
    module = f"vllm_prune.patches.{name}"
    patch = importlib.import_module(module).PATCH
    if not patch.library.startswith("vllm>"):
        return None
    checked = Checked(patch)
    loader = _Loader(tree, checked)
    if patch.trigger is not None and tree.path(patch.trigger) is None:
        checked.broken = f"there is no module {patch.trigger}"
        return checked
    try:
        loader.execute(module)["PATCH"].verify()
    except (PatchError, ImportError, AttributeError) as error:
        checked.broken = str(error)
    return checked


class _Loader:
    """Executes modules of the patches with stand-ins for vLLM."""

    def __init__(self, tree: Tree, checked: Checked) -> None:
        self.tree, self.checked = tree, checked
        self.inspect = types.SimpleNamespace(
            Parameter=inspect.Parameter, Signature=inspect.Signature, signature=self._signature, getsource=self._source
        )

    def execute(self, module: str) -> dict[str, Any]:
        path = Path(importlib.import_module(module).__file__ or "")
        namespace = {"__name__": module, "__builtins__": vars(builtins) | {"__import__": self._import}}
        exec(compile(path.read_text(), str(path), "exec"), namespace)
        return namespace

    def _import(self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if name == "inspect":
            return self.inspect
        if name == "importlib":
            return types.SimpleNamespace(import_module=self._import_module)
        if name in ("vllm_prune.patches.checks", "vllm_prune.patches.child_main"):
            return types.SimpleNamespace(**self.execute(name))
        if name.partition(".")[0] == "vllm":
            return self._import_module(name)
        return builtins.__import__(name, globals, locals, fromlist, level)

    def _import_module(self, name: str) -> Any:
        if name.partition(".")[0] != "vllm":
            return importlib.import_module(name)
        if self.tree.path(name) is None:
            raise ImportError(f"there is no module {name}")
        return ModuleStandIn(self, name)

    def _symbol(self, thing: Any) -> Symbol:
        symbol: Symbol = object.__getattribute__(thing, "symbol")
        self.checked.used[f"{symbol.module}:{symbol.name}"] = symbol
        return symbol

    def _signature(self, function: Callable[..., Any]) -> inspect.Signature:
        return self._symbol(function).signature if isinstance(function, StandIn) else inspect.signature(function)

    def _source(self, thing: Any) -> str:
        return self._symbol(thing).source


class ModuleStandIn:
    """A module of vLLM's."""

    def __init__(self, loader: _Loader, name: str) -> None:
        self._loader, self._name = loader, name

    def __getattr__(self, name: str) -> Any:
        tree, target = self._loader.tree, f"{self._name}:{name}"
        symbol = tree.find(INSTANCES.get(target, target))
        if symbol is not None:
            return _stand_in(self._loader, symbol)
        if tree.path(f"{self._name}.{name}") is not None:
            return ModuleStandIn(self._loader, f"{self._name}.{name}")
        raise AttributeError(f"{self._name} has no {name}")


class StandIn:
    """A class or a function of vLLM's."""

    def __init__(self, loader: _Loader, symbol: Symbol) -> None:
        object.__setattr__(self, "loader", loader)
        object.__setattr__(self, "symbol", symbol)

    def __getattribute__(self, name: str) -> Any:
        loader, symbol = (object.__getattribute__(self, key) for key in ("loader", "symbol"))
        if isinstance(symbol.node, Function):
            if name == "__func__":
                return self
            if name == "__name__":
                return symbol.node.name
            raise AttributeError(f"function {symbol.name} has no {name}")
        if name == "__dict__":
            return _Members(self)
        member = loader.tree.member(symbol, name)
        if member is not None:
            return _stand_in(loader, member)
        for base in loader.tree.foreign_bases(symbol):
            if hasattr(base, name):
                return getattr(base, name)
        raise AttributeError(f"{symbol.module}:{symbol.name} has no {name}")


class _Members:
    """A class's `__dict__`."""

    def __init__(self, owner: StandIn) -> None:
        self._owner = owner

    def __getitem__(self, name: str) -> Any:
        return getattr(self._owner, name)


def _stand_in(loader: _Loader, symbol: Symbol) -> Any:
    value = getattr(symbol.node, "value", None)
    if isinstance(symbol.node, ast.Assign | ast.AnnAssign) and value is not None:
        if isinstance(value, ast.Constant):
            return value.value
        if isinstance(value, ast.Call):  # such as `ConfigDict(extra="allow")`
            constants = {key.arg: key.value for key in value.keywords}
            return {name: node.value for name, node in constants.items() if isinstance(node, ast.Constant)}
    return StandIn(loader, symbol)
