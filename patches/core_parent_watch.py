"""Let the engine core end with its API server."""

from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_source

_MODULE = "vllm.v1.engine.core"
_TARGET = f"{_MODULE}:EngineCoreProc.run_engine_core"


def _owner() -> Any:
    from vllm.v1.engine import core

    return core.EngineCoreProc


def _applied() -> bool:
    from vllm_prune.serving.parent_watch import Watching

    return isinstance(_owner().run_engine_core, Watching)


def _verify() -> None:
    handled = ("signal.signal(signal.SIGTERM, signal_handler)",)
    require_source(_owner().run_engine_core, handled, _TARGET)


def _install() -> None:
    from vllm_prune.serving.parent_watch import Watching

    _owner().run_engine_core = Watching(*_TARGET.split(":"))


PATCH = Patch(
    name="core_parent_watch",
    target=_TARGET,
    process="engine core",
    trigger=_MODULE,
    why=(
        "An engine core waits for requests of its API server and never looks whether that still runs: where it was "
        "killed, the engine core, its workers, their memory and a GPU stay taken until somebody finds them."
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
