"""Patches that let a child process end with its parent: one record for each main function of a child."""

import functools
import importlib
import operator
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_source


def child_main_patch(
    *, name: str, target: str, process: str, why: str, verified: str, snippets: tuple[str, ...]
) -> Patch:
    """The record of one main function.

    Args:
        name: The patch's module.
        target: The main function, "module:attribute"; an attribute of a class is a static method.
        process: Which process runs it.
        why: What is wrong with it.
        verified: The function, of the same module, that shows how the process is started and what it does to end.
        snippets: Code that must stand in `verified`.
    """
    module, main = target.split(":")
    return Patch(
        name=name,
        target=target,
        process=process,
        trigger=module,
        why=why,
        how=(
            "Where the parent starts the process, another main function takes the place of vLLM's: it starts a thread "
            "and calls the original. The thread looks once a second whether the parent is there, asks its process to "
            "end with SIGTERM if not, and kills it and its children 5 s later (`serving/parent_watch.py`)."
        ),
        upstream=(
            "https://github.com/vllm-project/vllm/issues/55510",
            "https://github.com/vllm-project/vllm/pull/55846",
        ),
        remove_when="vllm>=0.33",
        needed=lambda: True,
        applied=functools.partial(_applied, module, main),
        verify=lambda: require_source(_find(module, verified), snippets, f"{module}:{verified}"),
        install=functools.partial(_install, module, main),
    )


def _find(module: str, name: str) -> Any:
    found: Any = importlib.import_module(module)
    return operator.attrgetter(name)(found) if name else found


def _applied(module: str, main: str) -> bool:
    from vllm_prune.serving.parent_watch import Watching

    return isinstance(_find(module, main), Watching)


def _install(module: str, main: str) -> None:
    from vllm_prune.serving.parent_watch import Watching

    owner, _, attribute = main.rpartition(".")
    setattr(_find(module, owner), attribute, Watching(module, main))
