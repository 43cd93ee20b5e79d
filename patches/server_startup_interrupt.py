"""Let a server that is told to stop while its engines start do so."""

import contextlib
from collections.abc import Iterator
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_source

_MODULE = "vllm.v1.engine.utils"
_SOCKET = "vllm.utils.network_utils:zmq_socket_ctx"
_MARK = "_vllm_prune_hands_on_interrupts"


def _module() -> Any:
    from vllm.v1.engine import utils

    return utils


def _verify() -> None:
    from vllm.utils.network_utils import zmq_socket_ctx

    swallows = ('except KeyboardInterrupt: logger.debug("Got Keyboard Interrupt.") finally:',)
    require_source(zmq_socket_ctx, swallows, _SOCKET)
    used = ("with zmq_socket_ctx( local_handshake_address,", "wait_for_engine_startup( handshake_socket,")
    require_source(_module().launch_core_engines, used, f"{_MODULE}:launch_core_engines")


def _install() -> None:
    module = _module()
    original = module.zmq_socket_ctx

    @contextlib.contextmanager
    def zmq_socket_ctx(*args: Any, **kwargs: Any) -> Iterator[Any]:
        interrupt: KeyboardInterrupt | None = None
        with original(*args, **kwargs) as socket:
            try:
                yield socket
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    setattr(zmq_socket_ctx, _MARK, True)
    module.zmq_socket_ctx = zmq_socket_ctx


PATCH = Patch(
    name="server_startup_interrupt",
    target=f"{_MODULE}:zmq_socket_ctx",
    process="API server",
    trigger=_MODULE,
    why=(
        "While the server waits for its engines to start, which takes as long as weights take to load, Ctrl-C and "
        "SIGTERM are swallowed with the socket of the handshake. The server then waits for engines that nobody greets "
        "or that have ended, ten minutes (VLLM_ENGINE_READY_TIMEOUT_S), unless it is told again."
    ),
    how="Raises the interrupt again once the socket is closed: vLLM ends the engines and the server.",
    upstream=("https://github.com/vllm-project/vllm/pull/44751",),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_module().zmq_socket_ctx, _MARK),
    verify=_verify,
    install=_install,
)
