"""Let a server whose engine died end with a status other than 0."""

import functools
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_leading, require_source

_MODULE = "vllm.entrypoints.launchers.launcher"
_TARGET = f"{_MODULE}:NoSignalServer.serve"
_MARK = "_vllm_prune_reports_a_dead_engine"


def _module() -> Any:
    from vllm.entrypoints.launchers import launcher

    return launcher


def _verify() -> None:
    module = _module()
    require_leading(module.NoSignalServer.serve, ("self",), _TARGET)
    used = (
        "server = NoSignalServer(config",
        "app.state.server = server",
        "engine_client = app.state.engine_client",
        "await server_task return dummy_shutdown()",
    )
    require_source(module.serve_http, used, f"{_MODULE}:serve_http")
    ends = ("engine_errored = engine.errored and not engine.is_running", "server.should_exit = True")
    require_source(module.terminate_if_errored, ends, f"{_MODULE}:terminate_if_errored")


def _install() -> None:
    server = _module().NoSignalServer
    original = server.serve

    @functools.wraps(original)
    async def serve(self: Any, *args: Any, **kwargs: Any) -> None:
        await original(self, *args, **kwargs)  # a server that is told to stop is cancelled here
        engine = self.config.app.state.engine_client
        if engine is not None and engine.errored and not engine.is_running:
            raise engine.dead_error

    setattr(serve, _MARK, True)
    server.serve = serve


PATCH = Patch(
    name="server_exit_status",
    target=_TARGET,
    process="API server",
    trigger=_MODULE,
    why=(
        "When its engine has died, the API server stops as if it had been told to, with status 0: systemd, Docker and "
        "Kubernetes jobs that restart what failed take it for done."
    ),
    how="Raises EngineDeadError once the HTTP server has ended because of the engine: the process ends with status 1.",
    upstream=("https://github.com/vllm-project/vllm/issues/48966",),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_module().NoSignalServer.serve, _MARK),
    verify=_verify,
    install=_install,
)
