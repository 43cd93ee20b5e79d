"""Check the device vLLM chose and the memory it will ask for."""

import os
import shutil

from vllm_prune.cli.checks.check import Check, fail, ok, warn

_GIB = 2**30


def check_device() -> list[Check]:
    """Name the device; on a CPU, see whether vLLM can compile for it."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return [ok("device", f"CPU, {os.cpu_count()} threads"), _check_compiler()]
    if current_platform.is_cuda():
        capability = current_platform.get_device_capability()
        return [ok("device", f"{current_platform.get_device_name()}, compute capability {capability}")]
    remedy = "use a CPU or an NVIDIA GPU; on a GPU machine, see that nvidia-smi works"
    return [fail("device", f"vLLM chose {current_platform.device_name!r}, which is not supported", remedy)]


def _check_compiler() -> Check:
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        remedy = "install g++, or start servers with --enforce-eager"
        return warn("C++ compiler", f"{compiler} not found; torch.compile on the CPU needs it", remedy)
    return ok("C++ compiler", compiler)


def check_memory() -> list[Check]:
    """Foresee the check that vLLM makes at start: `--gpu-memory-utilization` of all memory must be available."""
    from vllm.config import CacheConfig
    from vllm.platforms import current_platform

    default = CacheConfig().gpu_memory_utilization
    if current_platform.is_cuda():
        import torch

        available, total = torch.cuda.mem_get_info()
        return [_check_utilization(available, total, default)]
    available, total = _cpu_memory()
    if space := os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        return [_check_kv_space(space, available)]
    return [_check_utilization(available, total, default)]


def _cpu_memory() -> tuple[int, int]:
    from vllm.utils.cpu_resource_utils import get_allowed_cpu_list, get_memory_node_info

    memory = get_memory_node_info(get_allowed_cpu_list()[0].numa_node)
    return memory.available_memory, memory.total_memory


def _check_kv_space(space: str, available: int) -> Check:
    name = "memory"
    if not space.isdecimal():
        return fail(name, f"VLLM_CPU_KVCACHE_SPACE={space!r} is not a whole number of GiB", "set it to one, such as 4")
    if int(space) * _GIB > available:
        remedy = f"set it to {max(1, available // _GIB // 2)} or so"
        return fail(name, f"VLLM_CPU_KVCACHE_SPACE={space} GiB, but {available / _GIB:.1f} are available", remedy)
    return ok(name, f"{space} GiB for the KV cache (VLLM_CPU_KVCACHE_SPACE) of {available / _GIB:.1f} GiB available")


def _check_utilization(available: int, total: int, default: float) -> Check:
    detail = f"{available / _GIB:.1f} of {total / _GIB:.1f} GiB available"
    if available >= default * total:
        return ok("memory", f"{detail}; enough for vLLM's default --gpu-memory-utilization {default}")
    fitting = int(available / total * 95) / 100  # a little below, since memory moves
    remedy = f"pass --gpu-memory-utilization {fitting} or less; on a CPU, VLLM_CPU_KVCACHE_SPACE=GiB instead"
    return warn("memory", f"{detail}; vLLM's default --gpu-memory-utilization {default} will refuse to start", remedy)
