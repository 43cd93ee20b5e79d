"""Shared memory has no name once everybody has opened it, so nothing can be left of it."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from vllm_prune.patches import apply_all
from vllm_prune.patches.worker_cpu_shm_group import shared_memory_id


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_queue_works_on_without_the_name_of_its_memory():
    apply_all()
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    writer = MessageQueue(1, 1, max_chunk_bytes=2**16, max_chunks=2)
    segment = Path("/dev/shm", writer.buffer.shared_memory.name)
    assert segment.exists()
    reader = MessageQueue.create_from_handle(writer.export_handle(), 0)
    ready = Thread(target=reader.wait_until_ready)
    ready.start()
    writer.wait_until_ready()
    ready.join()
    assert not segment.exists()
    for number in range(5):
        writer.enqueue({"step": number})
        assert reader.dequeue(timeout=30) == {"step": number}
    del writer, reader
    gc.collect()


def test_processes_of_one_host_name_their_memory_alike():
    code = "from vllm_prune.patches.worker_cpu_shm_group import shared_memory_id; print(shared_memory_id())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == shared_memory_id()
