"""Checks that a patch's target still reads as it did when the patch was written.

Only the code a patch depends on is compared, not a hash of the whole function: a patch should survive changes that do
not concern it, and an error should show what changed.
"""

import inspect
from collections.abc import Callable
from typing import Any

from vllm_prune.patches.base import PatchError


def require_signature(function: Callable[..., Any], expected: str, target: str) -> None:
    """Raise PatchError unless the function's parameters and defaults are `expected`, such as `(self, mode=None)`.

    Annotations are left out: they change nothing for a wrapper, and they print differently from one Python to the next.
    """
    signature = inspect.signature(function)
    parameters = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    found = str(inspect.Signature(parameters))
    if found != expected:
        raise PatchError(target, f"the signature {expected}", found)


def require_leading(function: Callable[..., Any], expected: tuple[str, ...], target: str) -> None:
    """Raise PatchError unless the function's first parameters are `expected`, by name and each usable by position.

    For a wrapper that uses these and passes on the rest: whatever follows them may change.
    """
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    found = tuple(parameter.name for parameter in parameters if parameter.kind in positional)
    if found[: len(expected)] != expected:
        raise PatchError(target, f"the first parameters ({', '.join(expected)})", f"({', '.join(found)})")


def require_keywords(function: Callable[..., Any], expected: tuple[str, ...], target: str) -> None:
    """Raise PatchError unless the function takes each of `expected` by name."""
    parameters = inspect.signature(function).parameters
    missing = [name for name in expected if name not in parameters]
    if missing:
        raise PatchError(target, f"parameters named {', '.join(expected)}", f"none named {', '.join(missing)}")


def require_source(function: Callable[..., Any], snippets: tuple[str, ...], target: str) -> None:
    """Raise PatchError unless each snippet stands in the function's source, however either is wrapped or indented."""
    source = _one_line(inspect.getsource(function))
    for snippet in snippets:
        if _one_line(snippet) not in source:
            raise PatchError(target, f"the code `{snippet}`", "source without it")


def _one_line(code: str) -> str:
    return " ".join(code.split())
