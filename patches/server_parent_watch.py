"""Let API servers end with the process that started them (`--api-server-count`)."""

from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_source

_MODULE = "vllm.v1.utils"
_TARGET = f"{_MODULE}:run_api_server_worker_proc"


def _owner() -> Any:
    from vllm.v1 import utils

    return utils


def _applied() -> bool:
    from vllm_prune.serving.parent_watch import Watching

    return isinstance(_owner().run_api_server_worker_proc, Watching)


def _verify() -> None:
    started = ("target=target_server_fn or run_api_server_worker_proc",)
    require_source(_owner().APIServerProcessManager.__init__, started, f"{_MODULE}:APIServerProcessManager.__init__")


def _install() -> None:
    from vllm_prune.serving.parent_watch import Watching

    _owner().run_api_server_worker_proc = Watching(*_TARGET.split(":"))


PATCH = Patch(
    name="server_parent_watch",
    target=_TARGET,
    process="API server",
    trigger=_MODULE,
    why=(
        "With several API servers, these and the engine core are children of the process that was started. Where that "
        "is killed, they go on listening, so that the next start finds its port taken."
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
