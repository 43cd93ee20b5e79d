"""On CPUs, use shared memory between ranks only if they share it, and leave none of it behind."""

import functools
import glob
import os
import sys
from pathlib import Path
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_leading, require_source

_MODULE = "vllm.distributed.device_communicators.cpu_communicator"
_TARGET = f"{_MODULE}:_CPUSHMDistributed"
_MARK = "_vllm_prune_names_the_host"
_SHARED_MEMORY = Path("/dev/shm")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def shared_memory_id() -> str:
    """The same text in all processes with one /dev/shm: this boot of this kernel, and the file system mounted there."""
    boot = _BOOT_ID.read_text().strip().partition("-")[0] if _BOOT_ID.exists() else ""
    return f"{boot}.{os.stat(_SHARED_MEMORY).st_dev:x}"


def _distributed() -> Any:
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    return _CPUSHMDistributed


def _needed() -> bool:
    from vllm.platforms import current_platform

    return current_platform.is_cpu() and _SHARED_MEMORY.is_dir() and _distributed() is not None


def _applied() -> bool:
    # Asked on GPU machines too, where this module is never imported.
    return _MODULE in sys.modules and hasattr(_distributed().make_group_name, _MARK)


def _verify() -> None:
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    distributed = _distributed()
    require_leading(distributed.make_group_name, ("communicator",), f"{_TARGET}.make_group_name")
    require_leading(distributed._init_cpu_shm, ("self",), f"{_TARGET}._init_cpu_shm")
    joined = (
        "torch.ops._C.join_shm_manager( handle, self.group_name, ) "
        "torch.distributed.barrier(self.communicator.device_group)",
    )
    require_source(distributed._init_cpu_shm, joined, f"{_TARGET}._init_cpu_shm")
    compared = (
        "local_name = _CPUSHMDistributed.make_group_name(self)",
        "return len(set(names)) == 1",
    )
    function = CpuCommunicator._all_group_ranks_share_shm_group_name
    require_source(function, compared, f"{_MODULE}:CpuCommunicator.{function.__name__}")


def _install() -> None:
    distributed = _distributed()
    make_group_name, init_cpu_shm = distributed.make_group_name, distributed._init_cpu_shm

    @functools.wraps(make_group_name)
    def named(*args: Any, **kwargs: Any) -> str:
        return f"{make_group_name(*args, **kwargs)}-{shared_memory_id()}"

    @functools.wraps(init_cpu_shm)
    def _init_cpu_shm(self: Any, *args: Any, **kwargs: Any) -> int:
        handle = init_cpu_shm(self, *args, **kwargs)
        for segment in glob.glob(f"{glob.escape(self.group_name)}*", root_dir=_SHARED_MEMORY):
            (_SHARED_MEMORY / segment).unlink(missing_ok=True)  # every rank has opened it, and another may be faster
        return handle

    setattr(named, _MARK, True)
    distributed.make_group_name = staticmethod(named)
    distributed._init_cpu_shm = _init_cpu_shm


PATCH = Patch(
    name="worker_cpu_shm_group",
    target=_TARGET,
    process="worker, on the CPU",
    trigger=_MODULE,
    why=(
        "Ranks talk through shared memory if they agree on a name, which says nothing about their host: on two hosts "
        "they agree all the same, and the first all-reduce never returns. The segments stay when a worker is killed."
    ),
    how=(
        "Adds the kernel's boot and the file system of /dev/shm to the name, so that ranks without a common one use "
        "torch.distributed, and unlinks the segments once every rank has opened them."
    ),
    upstream=("https://github.com/vllm-project/vllm/pull/46716",),
    remove_when="vllm>=0.33",
    needed=_needed,
    applied=_applied,
    verify=_verify,
    install=_install,
)
