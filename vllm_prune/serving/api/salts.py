"""Of which images and videos a report must not tell whether they had been sent before. Lives in the API server.

`cache_salt` keeps what one tenant sent from being seen by another: vLLM's prefix cache is kept apart by it. The
encoder's outputs and the processed media are shared, so where one came from would tell that somebody else has
sent it. A request with a salt is never told. One without is told of media that others sent without one before. Of any
other it is not told either, once salts are used here: to withhold only what a tenant sent would tell just that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from threading import Lock
from typing import Any

from cachetools import LRUCache

_REMEMBERED = 1 << 16
"""Media sent without a salt, the last ones; far more than the caches hold."""


class SharedMedia:
    """Which media were sent without a salt, and whether salts are used."""

    def __init__(self, remembered: int = _REMEMBERED) -> None:
        """`remembered`: the number of media, the last ones."""
        self._open: LRUCache[bytes, bool] = LRUCache(remembered)
        self._salts_are_used = False
        self._lock = Lock()

    def withheld(self, prompt: Mapping[str, Any]) -> frozenset[int]:
        """Numbers of those media of a processed prompt (vLLM's `MultiModalInput`) whose origin is not told."""
        placed = [
            (place.offset, mm_hash)
            for modality, hashes in prompt["mm_hashes"].items()
            for place, mm_hash in zip(prompt["mm_placeholders"][modality], hashes, strict=True)
        ]
        hashes = [mm_hash for _, mm_hash in sorted(placed)]
        keys = [hashlib.sha256(mm_hash.encode()).digest() for mm_hash in hashes]  # a client may choose what is hashed
        with self._lock:
            if prompt.get("cache_salt") is not None:
                self._salts_are_used = True
                return frozenset(range(len(keys)))
            unknown = frozenset(number for number, key in enumerate(keys) if key not in self._open)
            self._open.update(dict.fromkeys(keys, True))
            return unknown if self._salts_are_used else frozenset()


withheld = SharedMedia().withheld
"""Of this process."""
