"""vLLM's media cache in shared memory (`--mm-processor-cache-type shm`), told what is really sent.

The API server writes a medium once and counts how often it hands it to a request; the workers count how often they
read it; the medium may be dropped when both agree. A request that is refused after its media were processed is never
read, so its media would stay for good, until there is room for no other; and the `n` requests of one prompt read what
was counted once, so a medium might be dropped under a request that has yet to read it. Here a handle counts as often as
it is sent. It also brings the video's specification, which the engine core needs for its block keys and cannot read
where the workers do.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

from vllm.multimodal.cache.shm import ShmObjectStoreSenderCache
from vllm.multimodal.inputs import MultiModalFeatureSpec, MultiModalKwargsItem

from vllm_prune.hook import Hooked, hook
from vllm_prune.serving.wire.request_spec import FIELD

_LAST_ID = "monotonic_id"
"""Field of a handle: which writing of the medium it is of."""


class _Handle(MultiModalKwargsItem):
    """Where a medium lies, for one request."""

    reads: int
    """How many are expected for every time that it is sent."""
    never_sent: weakref.finalize[Any, Any]
    """Takes them back when the handle is gone."""


class SentShmCache(Hooked, ShmObjectStoreSenderCache):
    """vLLM's cache, with the expected reads corrected."""

    def __init__(self, original: ShmObjectStoreSenderCache) -> None:
        """Goes on with the memory and the tables of `original`, which is not to be used any more."""
        self.__dict__ = original.__dict__
        self._touches: dict[str, int] = {}
        self._specs: dict[str, Any] = {}
        # Written where handles are sent and dropped, read where memory is: only the latter thread may change tables.
        self._corrections: deque[tuple[int, int]] = deque()

    @hook
    def touch_sender_cache_item(self, mm_hash: str) -> None:
        before = self._expected(mm_hash)
        super().touch_sender_cache_item(mm_hash)
        self._touches[mm_hash] = self._touches.get(mm_hash, 0) + self._expected(mm_hash) - before

    @hook
    def get_and_update_item(self, mm_item: Any, mm_hash: str) -> Any:
        self._correct()
        self._note_spec(mm_item, mm_hash)
        before = self._expected(mm_hash)
        item, updates = super().get_and_update_item(mm_item, mm_hash)
        if item is None or _LAST_ID not in item:
            return item, updates
        handle = _Handle(item)
        if mm_hash in self._specs:
            handle[FIELD] = self._specs[mm_hash]
        handle.reads = self._expected(mm_hash) - before + self._touches.pop(mm_hash, 0)
        taken_back = (int(handle[_LAST_ID].data), -handle.reads)
        handle.never_sent = weakref.finalize(handle, self._corrections.append, taken_back)
        handle.never_sent.atexit = False
        return handle, updates

    def missing(self, features: Sequence[MultiModalFeatureSpec]) -> list[int]:
        """None: what a handle is of stays in memory until it was read as often as it was sent."""
        return []

    def send(self, features: Sequence[MultiModalFeatureSpec]) -> list[MultiModalFeatureSpec]:
        """A request's media as the engine is to get them; their reads are expected from now on."""
        for feature in features:
            handle = feature.data
            if isinstance(handle, _Handle) and handle.never_sent.detach() is None:
                self._corrections.append((int(handle[_LAST_ID].data), handle.reads))
        return list(features)

    def _note_spec(self, mm_item: Any, mm_hash: str) -> None:
        """Keeps the specification of a video that is written, as long as the video is there."""
        if mm_item is None or FIELD not in mm_item[0]:
            return
        known = self._shm_cache.key_index
        if len(self._specs) > 2 * len(known):
            self._specs = {written: spec for written, spec in self._specs.items() if written in known}
        self._specs[mm_hash] = mm_item[0][FIELD]

    def _expected(self, mm_hash: str) -> int:
        storage = self._shm_cache
        return storage.writer_flag[storage.key_index[mm_hash][1]] if mm_hash in storage.key_index else 0

    def _correct(self) -> None:
        flags = self._shm_cache.writer_flag
        while self._corrections:
            written, reads = self._corrections.popleft()
            if written in flags:
                flags[written] += reads
