"""The same with a second tier on disk, vLLM's own, which outlives the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from host_offload import HostWorker, blocks_of
from vllm.v1.kv_offload.base import CanonicalKVCaches, OffloadingWorker
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


def connector(folder: Path, engine_id: str) -> dict[str, Any]:
    """`kv_transfer_config` of an engine that keeps blocks in `folder`."""
    return {
        "engine_id": engine_id,
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "spec_name": "HostDiskSpec",
            "spec_module_path": "host_disk",
            "cpu_bytes_to_use": 1 << 26,
            "secondary_tiers": [{"type": "fs", "root_dir": str(folder)}],
        },
    }


def free_memory(engine_id: str) -> int:
    """Removes what an engine that has ended left in shared memory, which vLLM's own worker would; how many files."""
    files = list(Path("/dev/shm").glob(f"vllm_offload_{engine_id}*.mmap"))
    for file in files:
        file.unlink()
    return len(files)


class HostDiskSpec(TieringOffloadingSpec):
    """vLLM's, with the copies of `host_offload`, to and from the memory that the disk's tier reads."""

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        if self._worker is None:
            region = SharedOffloadRegion(
                engine_id=self._engine_id,
                num_chunks=self.num_chunks,
                rank=self.config.parallel.rank,
                kv_bytes_per_chunk=self.kv_bytes_per_chunk,
                cpu_page_size=self.cpu_page_size_per_worker,
            )
            blocks = blocks_of(kv_caches)
            chunks = [region.create_next_worker_view(rows.shape[1]) for rows in blocks]
            self._worker = HostWorker(blocks, chunks)  # type: ignore[assignment]
        return self._worker
