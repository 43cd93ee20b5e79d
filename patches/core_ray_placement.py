"""Say within seconds that a Ray cluster has no room for the workers, instead of waiting for half an hour."""

import functools
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_leading, require_source

_MODULE = "vllm.v1.executor.ray_utils"
_TARGET = f"{_MODULE}:_wait_until_pg_ready"
_MARK = "_vllm_prune_bounds_the_wait"


def _module() -> Any:
    from vllm.v1.executor import ray_utils

    return ray_utils


def _verify() -> None:
    require_leading(_module()._wait_until_pg_ready, ("current_placement_group",), _TARGET)
    called = ("_wait_until_pg_ready(current_placement_group)",)
    require_source(_module().initialize_ray_cluster, called, f"{_MODULE}:initialize_ray_cluster")


def _install() -> None:
    original = _module()._wait_until_pg_ready

    @functools.wraps(original)
    def _wait_until_pg_ready(current_placement_group: Any, *args: Any, **kwargs: Any) -> None:
        from vllm_prune.serving.ray.placement import wait_for_placement

        wait_for_placement(current_placement_group)
        original(current_placement_group, *args, **kwargs)

    setattr(_wait_until_pg_ready, _MARK, True)
    _module()._wait_until_pg_ready = _wait_until_pg_ready


PATCH = Patch(
    name="core_ray_placement",
    target=_TARGET,
    process="engine core",
    trigger=_MODULE,
    why=(
        "Where a Ray cluster has fewer devices than a server asks for, vLLM waits 30 minutes for more, with a line in "
        "its log now and then: right for a cluster that grows, and a hang for everybody who mistyped a number."
    ),
    how=(
        "Waits VLLM_PRUNE_RAY_WAIT_S seconds (default 20) first, then fails with what was asked for, what there is and "
        "what to do."
    ),
    upstream=(
        "https://github.com/vllm-project/vllm/issues/13909",
        "https://github.com/vllm-project/vllm/pull/11138",
    ),
    remove_when="vllm>=0.33",
    needed=lambda: _module().ray is not None,
    applied=lambda: hasattr(_module()._wait_until_pg_ready, _MARK),
    verify=_verify,
    install=_install,
)
