"""Let vLLM's Ray executor place its workers on CPUs."""

import functools
import importlib.util
from typing import Any

from vllm_prune.patches.base import Patch, PatchError
from vllm_prune.patches.checks import require_leading, require_signature, require_source

_MODULE = "vllm.v1.executor.ray_executor_v2"
_TARGET = f"{_MODULE}:RayExecutorV2"
_DEVICE_KEY = "CPU"  # what Ray calls the resource


def _module() -> Any:
    from vllm.v1.executor import ray_executor_v2

    return ray_executor_v2


def _platform() -> Any:
    from vllm.platforms import current_platform

    return current_platform


def _has_ray() -> bool:
    try:
        return importlib.util.find_spec("ray.util") is not None  # not "ray", which any folder of that name would do for
    except ImportError:
        return False


def _needed() -> bool:
    # Where Ray is not installed, vLLM says so itself, and its executor's module cannot be imported.
    return _platform().is_cpu() and not _platform().ray_device_key and _has_ray() and _module().ray is not None


def _applied() -> bool:
    return _platform().is_cpu() and _platform().ray_device_key == _DEVICE_KEY


def _verify() -> None:
    if (key := _platform().ray_device_key) not in ("", _DEVICE_KEY):  # the latter once it is applied
        raise PatchError("vllm.platforms.cpu:CpuPlatform.ray_device_key", "''", repr(key))
    executor, worker = _module().RayExecutorV2, _module().RayWorkerProc
    require_signature(executor._get_actor_resource_kwargs, "()", f"{_TARGET}._get_actor_resource_kwargs")
    require_leading(executor._build_runtime_env, ("self",), f"{_TARGET}._build_runtime_env")
    require_signature(
        worker.get_node_and_physical_gpu_ids, "(self)", f"{_MODULE}:RayWorkerProc.get_node_and_physical_gpu_ids"
    )
    uses = (
        "runtime_env = self._build_runtime_env() resource_kwargs = self._get_actor_resource_kwargs()",
        "ray.remote(RayWorkerProc) .options( name=actor_name, num_cpus=0, **resource_kwargs,",
        "actor.get_node_and_physical_gpu_ids.remote()",
    )
    require_source(executor._init_executor, uses, f"{_TARGET}._init_executor")


def _install() -> None:
    module = _module()
    executor = module.RayExecutorV2
    build_runtime_env = executor._build_runtime_env

    # Imported when an executor starts: the module itself imports the one that this patch waits for.
    @functools.wraps(build_runtime_env)
    def _build_runtime_env(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        from vllm_prune.serving.ray import on_cpu as ray_on_cpu

        # The actor's class is pickled by name: so its process needs no patch, only this package.
        module.RayWorkerProc = ray_on_cpu.CpuRayWorkerProc
        return ray_on_cpu.with_threads(build_runtime_env(self, *args, **kwargs))

    def _get_actor_resource_kwargs() -> dict[str, Any]:
        from vllm_prune.serving.ray import on_cpu as ray_on_cpu

        return ray_on_cpu.actor_resources()

    executor._build_runtime_env = _build_runtime_env
    executor._get_actor_resource_kwargs = staticmethod(_get_actor_resource_kwargs)
    type(_platform()).ray_device_key = _DEVICE_KEY


PATCH = Patch(
    name="core_ray_on_cpu",
    target=_TARGET,
    process="engine core, on the CPU",
    trigger=_MODULE,
    why=(
        "vLLM's Ray executor refuses CPUs: CpuPlatform names no Ray resource, the executor asks for GPUs, and a worker "
        "looks for the GPUs that Ray gave it. Without GPUs there is neither tensor parallelism on Ray nor a test of it."
    ),
    how=(
        "Sets CpuPlatform.ray_device_key to Ray's CPU resource, asks for actors without GPUs in bundles of one CPU, "
        "lets a worker count itself as its device, and passes OMP_NUM_THREADS on. Refused on a cluster with GPUs."
    ),
    upstream=(
        "https://github.com/vllm-project/vllm/issues/21602",
        "https://github.com/vllm-project/vllm/pull/25386",
    ),
    remove_when="vllm>=0.33",
    needed=_needed,
    applied=_applied,
    verify=_verify,
    install=_install,
)
