"""Leave out the warning that our page's plugin is not loaded: nobody asked for it."""

import logging
from typing import Any

from vllm_prune.page.enable import PLUGIN
from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_source

_MODULE = "vllm.plugins"
_TARGET = f"{_MODULE}:load_endpoint_plugins"
_MESSAGE = "Found endpoint plugin(s) %s but VLLM_PLUGINS is not set."


class _OnlyOurs(logging.Filter):
    """Drops the warning where it names our page and nothing else."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (str(record.msg).startswith(_MESSAGE) and record.args == ([PLUGIN],))


def _module() -> Any:
    from vllm import plugins

    return plugins


def _verify() -> None:
    warning = f'logger.warning( "{_MESSAGE} "'
    require_source(_module().load_endpoint_plugins, (warning, "[p.name for p in discovered],"), _TARGET)


PATCH = Patch(
    name="server_page_warning",
    target=_TARGET,
    process="API server",
    trigger=_MODULE,
    why="vLLM warns at every start that the page's plugin is installed and not allowed, which is how most servers run.",
    how="A filter on the module's logger, for this message and only where it names no other plugin.",
    upstream=("https://github.com/vllm-project/vllm/pull/47454",),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: any(isinstance(known, _OnlyOurs) for known in _module().logger.filters),
    verify=_verify,
    install=lambda: _module().logger.addFilter(_OnlyOurs()),
)
