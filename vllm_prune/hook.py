"""Methods by which our classes answer vLLM: each says so, and must have something to override.

An override whose original was renamed is never called, and nothing fails; here the class cannot be made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_MARK = "_vllm_prune_hook"
_Function = TypeVar("_Function", bound=Callable[..., Any])


class MissingHookError(TypeError):
    """vLLM has no method of that name any more, so it would never call ours."""


def hook(function: _Function) -> _Function:
    """Marks a method that overrides one of vLLM's."""
    setattr(function, _MARK, True)
    return function


def is_hook(attribute: Any) -> bool:
    """Whether an attribute of a class (a static method, too) is marked."""
    return hasattr(getattr(attribute, "__func__", attribute), _MARK)


def is_vllms(base: type) -> bool:
    """Whether a class is vLLM's."""
    return base.__module__.partition(".")[0] == "vllm"


class Hooked:
    """First base of a class with hooks. Mixins without a base of vLLM's are checked where they are put before one."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not any(map(is_vllms, cls.__mro__)):
            return
        for index, owner in enumerate(cls.__mro__):
            for name, attribute in vars(owner).items():
                if is_hook(attribute) and not _is_overridden(name, cls.__mro__[index + 1 :]):
                    raise MissingHookError(
                        f"{owner.__name__}.{name}: none of vLLM's bases of {cls.__name__} has a method {name!r}, so "
                        f"this one would never be called; install the versions that `vllm-prune doctor` names as "
                        f"supported, or update vllm-prune"
                    )


def _is_overridden(name: str, bases: tuple[type, ...]) -> bool:
    return any(is_vllms(base) and name in vars(base) for base in bases)
