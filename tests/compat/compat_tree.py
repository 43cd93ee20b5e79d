"""A version of vLLM as source: modules, names, classes and their members, found without importing anything."""

from __future__ import annotations

import ast
import copy
import functools
import hashlib
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Default:
    """Stands for a default value in a signature, and prints as its source."""

    def __init__(self, node: ast.expr) -> None:
        self._node = node

    def __repr__(self) -> str:
        return ast.unparse(self._node)


@dataclass(eq=False)
class Symbol:
    """A definition in a module; of a member, where its class (or that class's base) defines it."""

    tree: Tree
    module: str
    node: ast.AST
    name: str

    @functools.cached_property
    def source(self) -> str:
        first = min([self.node.lineno, *(d.lineno for d in getattr(self.node, "decorator_list", ()))])
        return "\n".join(self.tree.lines(self.module)[first - 1 : self.node.end_lineno])

    @property
    def where(self) -> str:
        return f"{self.module}:{self.node.lineno}"

    @functools.cached_property
    def digest(self) -> str:
        """Of the code, without comments, docstrings, annotations and layout."""
        return hashlib.sha256(ast.unparse(_Plain().visit(copy.deepcopy(self.node))).encode()).hexdigest()[:12]

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        assert isinstance(self.node, Function)
        return inspect.Signature(list(_parameters(self.node.args)))


class _Plain(ast.NodeTransformer):
    def visit_FunctionDef(self, node: Function) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node


def _parameters(arguments: ast.arguments) -> Iterator[inspect.Parameter]:
    kind = inspect.Parameter
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    for index, (argument, default) in enumerate(zip(plain, defaults, strict=True)):
        only = kind.POSITIONAL_ONLY if index < len(arguments.posonlyargs) else kind.POSITIONAL_OR_KEYWORD
        yield kind(argument.arg, only, default=kind.empty if default is None else Default(default))
    if arguments.vararg:
        yield kind(arguments.vararg.arg, kind.VAR_POSITIONAL)
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield kind(argument.arg, kind.KEYWORD_ONLY, default=kind.empty if default is None else Default(default))
    if arguments.kwarg:
        yield kind(arguments.kwarg.arg, kind.VAR_KEYWORD)


class Tree:
    """The folder that holds `vllm/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, module: str) -> Path | None:
        """File of a module; None if there is none."""
        base = self.folder.joinpath(*module.split("."))
        return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.exists()), None)

    @functools.cache  # noqa: B019 - trees live as long as the process
    def lines(self, module: str) -> list[str]:
        path = self.path(module)
        return path.read_text().splitlines() if path else []

    @functools.cache  # noqa: B019
    def names(self, module: str) -> dict[str, ast.AST]:
        """What the names at the top level of a module stand for, those inside `if` and `try` too."""
        return dict(_definitions(ast.parse("\n".join(self.lines(module))).body))

    def _stars(self, module: str) -> list[ast.ImportFrom]:
        body = ast.parse("\n".join(self.lines(module))).body
        return [node for node in body if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"]

    def find(self, target: str) -> Symbol | None:
        """What "module:name.member" stands for, through imports and base classes; None if there is no such thing."""
        module, _, path = target.partition(":")
        name, *members = path.split(".")
        found = self._top(module, name)
        for member in members:
            found = self.member(found, member) if found else None
        return found

    def has(self, module: str, name: str) -> bool:
        """Whether `from module import name` would work; of what is made at import time, whether it is named there."""
        if self.path(f"{module}.{name}") or self._top(module, name):
            return True
        names = self.names(module)
        return name in names or ("__getattr__" in names and any(f'"{name}"' in line for line in self.lines(module)))

    def _top(self, module: str, name: str, depth: int = 0) -> Symbol | None:
        if self.path(module) is None or depth > 8:
            return None
        node = self.names(module).get(name)
        if node is None:
            stars = [self._absolute(module, star) for star in self._stars(module)]
            return next(filter(None, (self._top(star, name, depth + 1) for star in stars)), None)
        if not isinstance(node, ast.ImportFrom):
            return Symbol(self, module, node, name)
        original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
        return self._top(self._absolute(module, node), original, depth + 1)

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        path, parts = self.path(module), module.split(".")
        parts = parts[: len(parts) - node.level + (path is not None and path.name == "__init__.py")]
        return ".".join([*parts, *filter(None, [node.module])])

    def bases(self, found: Symbol) -> Iterator[Symbol]:
        """The class and its bases in vLLM, nearest first."""
        yield found
        for base in getattr(found.node, "bases", ()):
            base = base.value if isinstance(base, ast.Subscript) else base
            symbol = self._top(found.module, base.id) if isinstance(base, ast.Name) else None
            if symbol is not None:
                yield from self.bases(symbol)

    def member(self, found: Symbol, name: str) -> Symbol | None:
        """A member of a class."""
        for owner in self.bases(found):
            if isinstance(owner.node, ast.ClassDef):
                node = dict(_definitions(owner.node.body)).get(name)
                if node is not None:
                    return Symbol(self, owner.module, node, f"{owner.name}.{name}")
        return None

    def foreign_bases(self, found: Symbol) -> Iterator[type]:
        """Bases of the class, or of its bases in vLLM, that come from elsewhere; these are really imported."""
        for owner in self.bases(found):
            for base in getattr(owner.node, "bases", ()):
                base = base.value if isinstance(base, ast.Subscript) else base
                path = ast.unparse(base).split(".")
                node = self.names(owner.module).get(path[0])
                if isinstance(node, ast.Import) and len(path) > 1:
                    yield getattr(importlib.import_module(".".join(path[:-1])), path[-1])
                elif isinstance(node, ast.ImportFrom) and not self._absolute(owner.module, node).startswith("vllm"):
                    original = next(alias.name for alias in node.names if (alias.asname or alias.name) == path[0])
                    yield getattr(importlib.import_module(node.module or ""), original)


def _definitions(body: list[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    for node in body:
        if isinstance(node, Function | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((t.id, node) for target in targets for t in ast.walk(target) if isinstance(t, ast.Name))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name.partition(".")[0], node) for alias in node.names)
        elif isinstance(node, ast.If):
            # TYPE_CHECKING and platforms: the first definition that is there.
            yield from _definitions(node.orelse)
            yield from _definitions(node.body)
        elif isinstance(node, ast.Try):
            for handler in node.handlers:
                yield from _definitions(handler.body)
            yield from _definitions(node.body)
