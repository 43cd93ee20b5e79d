"""Time and memory of a function on tensors."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Measurement:
    """Seconds of each repeat, and the most bytes held beyond what was there before."""

    seconds: list[float]
    peak_bytes: int

    @property
    def mean(self) -> float:
        """Mean seconds."""
        return statistics.fmean(self.seconds)

    @property
    def best(self) -> float:
        """Least seconds: what the machine can do when nothing else runs on it."""
        return min(self.seconds)

    @property
    def standard_error(self) -> float:
        """Standard error of the mean; 0 for one repeat."""
        if len(self.seconds) < 2:
            return 0.0
        return statistics.stdev(self.seconds) / len(self.seconds) ** 0.5

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "mean": self.mean, "best": self.best, "standard_error": self.standard_error}


def measure(call: Callable[[], object], device: str, repeats: int, clock: str = "wall") -> Measurement:
    """Run `call` once to warm up, once for its memory, and `repeats` times for its time by the `clock` of CLOCKS."""
    call()
    peak = _peak_on_gpu(call) if device == "cuda" else peak_on_cpu(call)
    return Measurement([_time(call, device, CLOCKS[clock]) for _ in range(repeats)], peak)


def _time(call: Callable[[], object], device: str, clock: Callable[[], float]) -> float:
    _wait(device)
    start = clock()
    call()
    _wait(device)
    return clock() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_on_gpu(call: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def peak_on_cpu(call: Callable[[], object]) -> int:
    """Bytes of tensors that `call` holds at the most, by allocations and releases: without a resident set's noise."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    # The table of `profile` adds allocations up by operator; only the raw events tell what was held at one time.
    raw = profiler.profiler.kineto_results.events()
    held = peak = 0
    for event in sorted((event for event in raw if event.name() == "[memory]"), key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
