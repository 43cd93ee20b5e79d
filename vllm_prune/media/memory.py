"""Memory that two processes see: the bytes of a video, and the frames made of it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import mmap

import numpy as np

# The other process may not change the size: the server would end on touching memory that is gone.
_SIZE_IS_FIXED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@contextmanager
def file_of(data: bytes) -> Iterator[int]:
    """A descriptor of a nameless file with `data`, which nobody can change."""
    descriptor = os.memfd_create("video", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SIZE_IS_FIXED | fcntl.F_SEAL_WRITE)
        yield descriptor
    finally:
        os.close(descriptor)


class SharedArray:
    """An array of uint8, and the descriptor by which another process can write into it.

    Args:
        shape: Its shape; no dimension may be 0.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.size = int(np.prod(shape, dtype=np.int64))
        self.descriptor = os.memfd_create("frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, self.size)
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _SIZE_IS_FIXED)
            self.array = np.frombuffer(mmap(self.descriptor, self.size), np.uint8).reshape(shape)
        except BaseException:
            os.close(self.descriptor)
            raise

    def __enter__(self) -> SharedArray:
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the descriptor; the array stays."""
        os.close(self.descriptor)
