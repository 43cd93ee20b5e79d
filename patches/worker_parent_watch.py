"""Let a worker end with its engine core, also while it loads its model."""

from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_source

_MODULE = "vllm.v1.executor.multiproc_executor"
_TARGET = f"{_MODULE}:WorkerProc.worker_main"


def _owner() -> Any:
    from vllm.v1.executor import multiproc_executor

    return multiproc_executor.WorkerProc


def _applied() -> bool:
    from vllm_prune.serving.parent_watch import Watching

    return isinstance(_owner().worker_main, Watching)


def _verify() -> None:
    handled = ("signal.signal(signal.SIGTERM, signal_handler)", "worker.monitor_death_pipe(")
    require_source(_owner().worker_main, handled, _TARGET)


def _install() -> None:
    from vllm_prune.serving.parent_watch import Watching

    _owner().worker_main = Watching(*_TARGET.split(":"))


PATCH = Patch(
    name="worker_parent_watch",
    target=_TARGET,
    process="worker",
    trigger=_MODULE,
    why=(
        "vLLM's worker reads a pipe that closes with its engine core, but only once its model is loaded, and then asks "
        "its queues to end: a worker in the middle of a collective operation waits for ranks that are gone."
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
