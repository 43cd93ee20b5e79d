"""Of which videos a report must not tell whether they had been sent before. Lives in the API server.

`cache_salt` keeps what one tenant sent from being seen by another: vLLM's prefix cache is kept apart by it. The
encoder's outputs and the processed media are shared, so where a video came from would tell that somebody else has
sent it. A request with a salt is never told; one without is not told of a video that was once sent with a salt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

from cachetools import LRUCache

_REMEMBERED = 1 << 16
"""Videos sent with a salt, the last ones; far more than the caches hold."""

_salted: LRUCache[bytes, bool] = LRUCache(_REMEMBERED)
_lock = Lock()


def withheld(prompt: Mapping[str, Any]) -> frozenset[int]:
    """Numbers of those videos of a processed prompt.

    Args:
        prompt: vLLM's `MultiModalInput`.
    """
    hashes: Sequence[str] = prompt["mm_hashes"].get("video", ())
    keys = [hashlib.sha256(mm_hash.encode()).digest() for mm_hash in hashes]  # a client may choose what is hashed here
    with _lock:
        if prompt.get("cache_salt") is not None:
            _salted.update(dict.fromkeys(keys, True))
        return frozenset(number for number, key in enumerate(keys) if key in _salted)
