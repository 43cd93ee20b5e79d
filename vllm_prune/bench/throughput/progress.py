"""One progress bar for a whole run, with what is going on now and for how long."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

TERMINAL_SECONDS, FILE_SECONDS = 0.5, 30.0  # between updates: a file keeps every one of them


class Progress:
    """Counts steps; `begin` names the current one and `tick` shows its age."""

    def __init__(self, steps: int, *, done: int = 0, unit: str = "step") -> None:
        self._bar = tqdm(total=steps, initial=done, unit=unit, dynamic_ncols=True)
        self._step = ""
        self._began = self._shown = time.monotonic()
        self._interval = TERMINAL_SECONDS if sys.stderr.isatty() else FILE_SECONDS

    def begin(self, step: str) -> None:
        """Name the step that starts now."""
        self._step, self._began = step, time.monotonic()
        self._show()

    def tick(self) -> None:
        """Show how long the current step has taken."""
        if time.monotonic() - self._shown >= self._interval:
            self._show()

    def _show(self) -> None:
        self._shown = time.monotonic()
        self._bar.set_postfix_str(f"{self._step}, {time.monotonic() - self._began:.0f} s")

    def finish(self, steps: int = 1) -> None:
        """Count the current step, or several, as done."""
        self._bar.update(steps)

    def write(self, line: str) -> None:
        """Print a line above the bar."""
        self._bar.write(line)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
