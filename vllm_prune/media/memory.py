"""Memory that two processes see: the bytes of a video, and the frames made of it."""

from __future__ import annotations

import fcntl
import os
from mmap import MAP_POPULATE, MAP_SHARED, mmap
from weakref import finalize

# The other process may not change the size: the server would end on touching memory that is gone.
_SIZE_IS_FIXED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

_LARGEST_KEPT = 64 << 20  # bytes, of each kind for each decoder


class FileMemory:
    """A nameless file for the bytes of one video after another, of one decoder."""

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def put(self, data: bytes) -> int:
        """A descriptor of a file with `data`, valid until the next call."""
        if self._descriptor is None:
            self._descriptor = os.memfd_create("video", os.MFD_CLOEXEC)
        os.ftruncate(self._descriptor, len(data))
        at = 0
        while at < len(data):
            at += os.pwrite(self._descriptor, memoryview(data)[at:], at)
        return self._descriptor

    def forget(self) -> None:
        """Give large memory back."""
        if self._descriptor is not None and os.fstat(self._descriptor).st_size > _LARGEST_KEPT:
            os.ftruncate(self._descriptor, 0)

    def close(self) -> None:
        """Give all memory back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class FrameMemory:
    """Memory for the frames of one decoder, kept when the frames are gone: new pages cost more than the frames' copy.

    It stays with its decoder, so that no decoder sees what another one made.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[int, int]] = []  # descriptor, size
        self._closed = False

    def take(self, size: int) -> tuple[int, mmap]:
        """A descriptor of memory of `size` bytes or more, and the first `size` of them in this process.

        The descriptor is valid as long as there is an array in the memory.
        """
        while self._kept:
            descriptor, capacity = self._kept.pop()
            if size <= capacity:
                break
            os.close(descriptor)
        else:
            descriptor, capacity = _new_memory(size), size
        memory = map_memory(descriptor, size)
        finalize(memory, self._give_back, descriptor, capacity).atexit = False
        return descriptor, memory

    def _give_back(self, descriptor: int, capacity: int) -> None:
        if self._closed or self._kept or capacity > _LARGEST_KEPT:
            os.close(descriptor)
        else:
            self._kept.append((descriptor, capacity))

    def close(self) -> None:
        """Keep nothing any more; arrays that are in use stay."""
        self._closed = True
        while self._kept:
            os.close(self._kept.pop()[0])


def _new_memory(size: int) -> int:
    descriptor = os.memfd_create("frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SIZE_IS_FIXED)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def map_memory(descriptor: int, size: int) -> mmap:
    """The memory in this process; all of it at once unless it is large, as frames may be fewer than a file promises."""
    return mmap(descriptor, size, flags=MAP_SHARED | (MAP_POPULATE if size <= _LARGEST_KEPT else 0))
