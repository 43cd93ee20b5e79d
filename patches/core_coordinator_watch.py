"""Let the coordinator of data-parallel engines end with the process that started it."""

from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_source

_MODULE = "vllm.v1.engine.coordinator"
_TARGET = f"{_MODULE}:DPCoordinatorProc.run_coordinator"


def _module() -> Any:
    from vllm.v1.engine import coordinator

    return coordinator


def _applied() -> bool:
    from vllm_prune.serving.parent_watch import Watching

    return isinstance(_module().DPCoordinatorProc.run_coordinator, Watching)


def _verify() -> None:
    started = ("target=DPCoordinatorProc.run_coordinator",)
    require_source(_module().DPCoordinator.__init__, started, f"{_MODULE}:DPCoordinator.__init__")


def _install() -> None:
    from vllm_prune.serving.parent_watch import Watching

    _module().DPCoordinatorProc.run_coordinator = Watching(*_TARGET.split(":"))


PATCH = Patch(
    name="core_coordinator_watch",
    target=_TARGET,
    process="coordinator of data-parallel engines",
    trigger=_MODULE,
    why=(
        "The coordinator waits for its engines' messages and never looks whether anybody is left: where the server was "
        "killed, it stays."
    ),
    how=(
        "Where the parent starts the process, another main function takes the place of vLLM's: it starts a thread and "
        "calls the original. The thread looks once a second whether the parent is there, asks its process to end with "
        "SIGTERM if not, and kills it and its children 5 s later (`serving/parent_watch.py`)."
    ),
    upstream=(
        "https://github.com/vllm-project/vllm/issues/55510",
        "https://github.com/vllm-project/vllm/pull/55846",
    ),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=_applied,
    verify=_verify,
    install=_install,
)
