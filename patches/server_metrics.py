"""Register the metrics `vllm_prune:*` where vLLM registers its own."""

import functools
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_leading, require_source

_MODULE = "vllm.v1.metrics.loggers"
_TARGET = f"{_MODULE}:PrometheusStatLogger.__init__"
_MARK = "_vllm_prune_registers_metrics"


def _logger() -> type[Any]:
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    return PrometheusStatLogger


def _verify() -> None:
    from vllm.v1.metrics.prometheus import unregister_vllm_metrics

    require_leading(_logger().__init__, ("self", "vllm_config"), _TARGET)
    unregistered = ('collector._name.startswith("vllm:")',)
    require_source(unregister_vllm_metrics, unregistered, "vllm.v1.metrics.prometheus:unregister_vllm_metrics")


def _install() -> None:
    logger = _logger()
    original = logger.__init__

    @functools.wraps(original)
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        from vllm_prune.serving.api.metrics import start

        original(self, vllm_config, *args, **kwargs)
        start(vllm_config)

    setattr(__init__, _MARK, True)
    logger.__init__ = __init__


PATCH = Patch(
    name="server_metrics",
    target=_TARGET,
    process="API server",
    trigger=_MODULE,
    why=(
        "vLLM's plugins for statistics see sums over a step and no request, and metrics must be registered after "
        "PROMETHEUS_MULTIPROC_DIR has been set and only where vLLM keeps metrics at all (--disable-log-stats)."
    ),
    how="Registers ours at the end of the constructor that registers vLLM's, on servers of a pruning variant.",
    upstream=("https://github.com/vllm-project/vllm/pull/22456",),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_logger().__init__, _MARK),
    verify=_verify,
    install=_install,
)
