"""A worker for vLLM's offloading connector on a machine without a GPU: what is offloaded is copied within its memory.

vLLM's own copies are CUDA's. Everything else is vLLM's: the connector, its keys, and what decides what is loaded.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.kv_offload.base import CanonicalKVCaches, OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec

CONNECTOR: dict[str, Any] = {
    "kv_connector": "OffloadingConnector",
    "kv_role": "kv_both",
    "kv_connector_extra_config": {
        "spec_name": "HostSpec",
        "spec_module_path": "host_offload",
        "cpu_bytes_to_use": 1 << 28,
    },
}
"""`kv_transfer_config`."""


class HostSpec(CPUOffloadingSpec):
    """vLLM's, with this module's copies."""

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        if self._worker is None:
            blocks = blocks_of(kv_caches)
            chunks = [rows.new_empty((self.num_chunks, rows.shape[1])) for rows in blocks]
            self._worker = HostWorker(blocks, chunks)  # type: ignore[assignment]
        return self._worker


def blocks_of(kv_caches: CanonicalKVCaches) -> list[torch.Tensor]:
    """Each cache as bytes [num_blocks, bytes of a block]."""
    return [cache.tensor.view(torch.int8).view(-1, cache.page_size_bytes) for cache in kv_caches.tensors]


class HostWorker(OffloadingWorker):
    """Copies blocks at once; one chunk is one block."""

    def __init__(self, blocks: list[torch.Tensor], chunks: list[torch.Tensor]) -> None:
        self._blocks, self._chunks = blocks, chunks
        self._done: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        return self._copy(job_id, self._blocks, src_spec, self._chunks, dst_spec)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        return self._copy(job_id, self._chunks, src_spec, self._blocks, dst_spec)

    def _copy(self, job_id: int, sources: Any, read: Any, targets: Any, written: Any) -> bool:
        rows, places = (torch.from_numpy(spec.block_ids).long() for spec in (read, written))
        for source, target in zip(sources, targets, strict=True):
            target[places] = source[rows]
        self._done.append(TransferResult(job_id, True))
        return True

    def get_finished(self) -> list[TransferResult]:
        done, self._done = self._done, []
        return done

    def wait(self, job_ids: set[int]) -> None:
        """All are done."""
