"""Times stretches of work on a device without waiting for it."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Runs from its making until `stop`.

    On a GPU it is two events on the current stream, read when the work is long done; elsewhere the clock on the wall.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._begin = self._now()
        self._end: float | torch.cuda.Event = self._begin

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def stop(self) -> None:
        """Ends the stretch; may be called again to prolong it."""
        self._end = self._now()

    @property
    def seconds(self) -> float:
        """Its length; waits for the device if the work is still under way."""
        if isinstance(self._begin, torch.cuda.Event):
            assert isinstance(self._end, torch.cuda.Event)
            self._end.synchronize()
            return self._begin.elapsed_time(self._end) / 1000
        assert isinstance(self._end, float)
        return self._end - self._begin
