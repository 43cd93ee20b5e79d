"""Time by stage. A stage within another one is not counted twice: each gets what its own code took."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class StageTimes:
    """Of one request."""

    seconds: dict[str, float] = field(default_factory=dict)
    """By stage, without the stages within it."""
    calls: dict[str, int] = field(default_factory=dict)

    def add(self, stage: str, seconds: float) -> None:
        """One call of a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self.calls[stage] = self.calls.get(stage, 0) + 1


class Timers:
    """Times functions; `times` holds what was seen since the last `reset`.

    >>> seconds = iter([0.0, 1.0, 3.0, 4.0])
    >>> timers = Timers(clock=lambda: next(seconds))
    >>> timers.timed("outer", timers.timed("inner", lambda: "done"))()
    'done'
    >>> timers.times.seconds
    {'inner': 2.0, 'outer': 2.0}
    """

    def __init__(
        self, wait: Callable[[], object] = lambda: None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`wait` returns when the device has done what it was given; called at both ends of every stage."""
        self._wait, self._clock = wait, clock
        self._within: list[float] = []
        self.times = StageTimes()

    def reset(self) -> StageTimes:
        """Begins anew and returns what was seen before."""
        seen, self.times = self.times, StageTimes()
        return seen

    def now(self) -> float:
        """Seconds, after the device is done."""
        self._wait()
        return self._clock()

    def timed(self, stage: str | Callable[..., str | None], function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, counted as `stage`, or as what `stage` says of its arguments; None: as what is around it."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            name = stage if isinstance(stage, str) else stage(*args, **kwargs)
            if name is None:
                return function(*args, **kwargs)
            begin = self.now()
            self._within.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                elapsed = self.now() - begin
                self.times.add(name, elapsed - self._within.pop())
                if self._within:
                    self._within[-1] += elapsed

        return call
