"""Decoding processes, kept for the next video and replaced when they end."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

from vllm_prune.media.limits import DEFAULT_LIMITS, Limits
from vllm_prune.media.process import DecoderProcess


class DecoderPool:
    """At most `limits.processes` decoders, started when they are first needed."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._idle: list[DecoderProcess] = []
        self._lent = 0
        self._change = Condition()

    @contextmanager
    def lend(self) -> Iterator[DecoderProcess]:
        """A decoder for one video; waits for one if all are in use.

        Raises:
            DecoderUnavailable: None can be started.
        """
        decoder = self._take()
        try:
            decoder = decoder or DecoderProcess(self._limits)
            decoder.begin()
            yield decoder
        finally:
            if decoder is not None:
                decoder.finish()
            with self._change:
                self._lent -= 1
                if decoder is not None and decoder.usable:
                    self._idle.append(decoder)
                self._change.notify()

    def _take(self) -> DecoderProcess | None:
        with self._change:
            self._change.wait_for(lambda: self._lent < self._limits.processes)
            self._lent += 1
            return self._idle.pop() if self._idle else None

    def close(self) -> None:
        """End the idle ones; those at work end with this process."""
        with self._change:
            idle, self._idle = self._idle, []
        for decoder in idle:
            decoder.end()


_pool: DecoderPool | None = None


def shared_pool(processes: int) -> DecoderPool:
    """The pool of this process, made on the first call with room for `processes`."""
    global _pool
    if _pool is None:
        _pool = DecoderPool(Limits(processes=processes))
        atexit.register(_pool.close)
    return _pool


def _forget_pool() -> None:
    global _pool
    _pool = None


# The decoders of a process that forks stay its own; two that spoke to one would mix up their videos.
os.register_at_fork(after_in_child=_forget_pool)
