"""The API server's half of vLLM's mirrored media cache, kept by what was sent to the engine.

vLLM keeps processed media in the engine core and, in the API server, a list of what is there: a medium on the list is
sent as nothing but its hash. vLLM writes the list when a request is processed. A request that is refused after that, or
sent in another order than processed, leaves a list that differs from the engine's cache, and a later request fails.
Here the list is written when a request is sent, by the engine's own operations in the engine's own order; whatever
happens to a request before that changes nothing. Until then its media belong to the request alone.

`SentMediaCache` takes the place of vLLM's `LruKeyReplicatedSenderCache`, and `sending.py` asks it about every request
on its way out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

from vllm.multimodal.cache import BaseMultiModalProcessorCache
from vllm.multimodal.cache.base import MultiModalCache
from vllm.multimodal.inputs import MultiModalFeatureSpec, MultiModalKwargsItem
from vllm.utils.cache import CacheInfo, LRUCache

from vllm_prune.hook import Hooked, hook

Updates = Sequence[Any]
"""vLLM's `ResolvedPromptUpdate`s of one medium."""


class ProcessedItem(MultiModalKwargsItem):
    """A medium that was processed for a request, with what the list will have to know once it is sent."""

    updates: Updates
    size: int
    """Bytes, as vLLM's caches count them."""

    @classmethod
    def of(cls, item: MultiModalKwargsItem, updates: Updates) -> ProcessedItem:
        """`item` and its `updates` in one."""
        processed = cls(item)
        processed.updates, processed.size = updates, MultiModalCache.get_item_size(item)
        return processed

    def __reduce__(self) -> tuple[Any, ...]:
        """To a worker goes the medium alone; its updates may hold functions, which cannot be pickled."""
        return MultiModalKwargsItem, (self.data,)


class KnownItem(MultiModalKwargsItem):
    """Stands for a medium that the engine has; empty."""

    updates: Updates
    process: Callable[[], tuple[MultiModalKwargsItem, Updates]] | None = None
    """Processes the medium again, for the rare case that the engine has dropped it when the request is sent."""

    @classmethod
    def of(cls, updates: Updates) -> KnownItem:
        """The stand-in of the medium with these `updates`."""
        known = cls()
        known.updates = updates
        return known


@dataclass(frozen=True)
class _Sent:
    """An entry of the list."""

    size: int
    updates: Updates
    """Empty if the medium came processed: such an entry is never promised, as its placeholders are not known."""


class SentMediaCache(Hooked, BaseMultiModalProcessorCache):
    """vLLM's interface of a cache of processed media, over the list of what the engine has."""

    def __init__(self, capacity: float) -> None:
        """Begins empty.

        Args:
            capacity: Bytes; the engine's cache has as many.
        """
        super().__init__()
        self._lock = Lock()  # the thread that processes media looks things up while the event loop's sends
        self._sent: LRUCache[str, _Sent] = LRUCache(capacity, getsizeof=lambda sent: sent.size)
        self._unsent: WeakValueDictionary[str, ProcessedItem] = WeakValueDictionary()
        self._promised: dict[str, ProcessedItem | _Sent] = {}  # what `is_cached_item` found, until the next request's
        self._taking = False
        self._stats = self._last_stats = CacheInfo(hits=0, total=0)

    @property
    def order(self) -> list[str]:
        """Hashes of what the engine has, the one that it will drop first in front."""
        with self._lock:
            return list(self._sent.order)

    @hook
    def is_cached_item(self, mm_hash: str) -> bool:
        with self._lock:
            if self._taking:
                self._promised.clear()
                self._taking = False
            sent = self._sent.cache.get(mm_hash)  # not `get` of the cache itself, which changes the order
            found = sent if sent is not None and sent.updates else self._unsent.get(mm_hash)
            if found is not None:
                self._promised[mm_hash] = found
            return found is not None

    @hook
    def get_and_update_item(
        self, mm_item: tuple[MultiModalKwargsItem, Updates] | None, mm_hash: str
    ) -> tuple[MultiModalKwargsItem | None, Updates]:
        with self._lock:
            if mm_item is not None and not mm_item[1]:  # a medium that came processed
                return mm_item
            self._taking = True
            found = self._promised.get(mm_hash) or self._unsent.get(mm_hash)
            self._stats = CacheInfo(self._stats.hits + (found is not None), self._stats.total + 1)
            if isinstance(found, ProcessedItem):
                return found, found.updates
            if found is not None:
                return KnownItem.of(found.updates), found.updates
            assert mm_item is not None, f"Expected a cached item for {mm_hash=}"
            item, updates = mm_item
            self._unsent[mm_hash] = fresh = ProcessedItem.of(item, updates)
            return fresh, updates

    @hook
    def touch_sender_cache_item(self, mm_hash: str) -> None:
        """Nothing: the order changes when the engine's does."""

    @hook
    def invalidate(self, mm_hash: str) -> None:
        with self._lock:
            self._sent.pop(mm_hash, None)

    @hook
    def clear_cache(self) -> None:
        with self._lock:
            self._sent.clear()
            self._unsent.clear()
            self._promised.clear()

    @hook
    def make_stats(self, *, delta: bool = False) -> CacheInfo:
        with self._lock:
            info = self._stats - self._last_stats if delta else self._stats
            if delta:
                self._last_stats = self._stats
            return info

    def missing(self, features: Sequence[MultiModalFeatureSpec]) -> list[int]:
        """Which of a request's media must be processed again, since the engine may not have them when it needs them.

        None, but for a request that waited while many others were sent, or whose media fill the cache.
        """
        known = [i for i, feature in enumerate(features) if isinstance(feature.data, KnownItem)]
        with self._lock:
            if all(_key(features[i]) in self._sent for i in known) and self._keeps_all(features):
                return []
        return known

    def _keeps_all(self, features: Sequence[MultiModalFeatureSpec]) -> bool:
        """Whether no medium of a request drops another one of it."""
        sizes = {}
        for feature in features:
            sent = self._sent.cache.get(_key(feature))
            sizes[_key(feature)] = sent.size if isinstance(feature.data, KnownItem) and sent else _size(feature.data)
        return sum(sizes.values()) <= self._sent.maxsize

    def send(self, features: Sequence[MultiModalFeatureSpec]) -> list[MultiModalFeatureSpec]:
        """A request's media as the engine is to get them, and the list as it is after that.

        To be called right before the request goes out. The operations are those of vLLM's
        `BaseMultiModalReceiverCache.get_and_update_features`.
        """
        with self._lock:
            for feature in features:
                self._sent.touch(_key(feature))
            return [
                dataclasses.replace(feature, data=self._send_item(_key(feature), feature.data)) for feature in features
            ]

    def _send_item(self, key: str, item: MultiModalKwargsItem | None) -> MultiModalKwargsItem | None:
        sent = self._sent.get(key)
        if item is None or isinstance(item, KnownItem):
            return None
        updates = item.updates if isinstance(item, ProcessedItem) else ()
        if sent is not None and updates and sent.updates is updates:
            return None  # one of several requests with this very item has brought it there
        self._sent.pop(key, None)
        self._sent.put_if_fits(key, _Sent(_size(item), updates))
        return item


def _key(feature: MultiModalFeatureSpec) -> str:
    """The key of the engine's cache."""
    return feature.mm_hash or feature.identifier


def _size(item: MultiModalKwargsItem | None) -> int:
    if item is None:
        return 0
    return item.size if isinstance(item, ProcessedItem) else MultiModalCache.get_item_size(item)
