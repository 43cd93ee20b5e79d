"""Take the name of a message queue's shared memory away as soon as all who need it have opened it."""

import functools
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_leading, require_source

_MODULE = "vllm.distributed.device_communicators.shm_broadcast"
_TARGET = f"{_MODULE}:MessageQueue.wait_until_ready"
_MARK = "_vllm_prune_unlinks_shared_memory"


def _module() -> Any:
    from vllm.distributed.device_communicators import shm_broadcast

    return shm_broadcast


def _verify() -> None:
    queue, buffer = _module().MessageQueue, _module().ShmRingBuffer
    require_leading(queue.wait_until_ready, ("self",), _TARGET)
    # Readers open the segment before they subscribe, and the writer waits for their subscriptions.
    opened_first = ("self.buffer = ShmRingBuffer(*handle.buffer_handle)", "self.local_socket.connect(socket_addr)")
    require_source(queue.create_from_handle, opened_first, f"{_MODULE}:MessageQueue.create_from_handle")
    waits = ("for i in range(self.n_local_reader):", "self.local_socket.recv()")
    require_source(queue.wait_until_ready, waits, _TARGET)
    unlinks_itself = ("if self.is_creator: self.shared_memory.unlink()",)
    require_source(buffer.__del__, unlinks_itself, f"{_MODULE}:ShmRingBuffer.__del__")


def _install() -> None:
    queue = _module().MessageQueue
    original = queue.wait_until_ready

    @functools.wraps(original)
    def wait_until_ready(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if self._is_writer and self.n_local_reader and self.buffer.is_creator:
            self.buffer.shared_memory.unlink()
            self.buffer.is_creator = False  # nothing is left to unlink when it is collected

    setattr(wait_until_ready, _MARK, True)
    queue.wait_until_ready = wait_until_ready


PATCH = Patch(
    name="worker_shm_queues",
    target=_TARGET,
    process="engine core and workers",
    trigger=_MODULE,
    why=(
        "A message queue's segment in /dev/shm (up to 240 MiB) is removed by its writer's destructor. When a server "
        "stops, its children are killed, and the segments stay until the machine is out of shared memory."
    ),
    how=(
        "Unlinks the segment once all readers have opened it: it lives on as long as they do, and the kernel frees it "
        "with the last of them, however that one ends."
    ),
    upstream=(
        "https://github.com/vllm-project/vllm/issues/8933",
        "https://github.com/vllm-project/vllm/pull/32429",
    ),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_module().MessageQueue.wait_until_ready, _MARK),
    verify=_verify,
    install=_install,
)
