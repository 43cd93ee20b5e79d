"""Of which videos a report must not tell whether they had been sent before. Lives in the API server.

`cache_salt` keeps what one tenant sent from being seen by another: vLLM's prefix cache is kept apart by it. The
encoder's outputs and the processed media are shared, so where a video came from would tell that somebody else has
sent it. A request with a salt is never told. One without is told of videos that others sent without one before. Of any
other it is not told either, once salts are used here: to withhold only what a tenant sent would tell just that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

from cachetools import LRUCache

_REMEMBERED = 1 << 16
"""Videos sent without a salt, the last ones; far more than the caches hold."""


class SharedVideos:
    """Which videos were sent without a salt, and whether salts are used."""

    def __init__(self, remembered: int = _REMEMBERED) -> None:
        """`remembered`: the number of videos, the last ones."""
        self._open: LRUCache[bytes, bool] = LRUCache(remembered)
        self._salts_are_used = False
        self._lock = Lock()

    def withheld(self, prompt: Mapping[str, Any]) -> frozenset[int]:
        """Numbers of those videos of a processed prompt (vLLM's `MultiModalInput`) whose origin is not told."""
        hashes: Sequence[str] = prompt["mm_hashes"].get("video", ())
        keys = [hashlib.sha256(mm_hash.encode()).digest() for mm_hash in hashes]  # a client may choose what is hashed
        with self._lock:
            if prompt.get("cache_salt") is not None:
                self._salts_are_used = True
                return frozenset(range(len(keys)))
            unknown = frozenset(number for number, key in enumerate(keys) if key not in self._open)
            self._open.update(dict.fromkeys(keys, True))
            return unknown if self._salts_are_used else frozenset()


withheld = SharedVideos().withheld
"""Of this process."""
