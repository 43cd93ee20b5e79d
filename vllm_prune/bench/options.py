"""What the benchmarks' command lines have in common."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

FAILED, USAGE, INTERRUPTED = 1, 2, 130
"""Exit statuses: of a run that could not go on, of arguments that cannot be used (argparse's own), and of a run that
Ctrl-C, SIGTERM or SIGHUP ended."""


def positive(text: str) -> int:
    """An integer of 1 or more, for argparse."""
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """An integer of 0 or more, for argparse."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{text}: must be {least} or more")
    return value


def json_object(text: str) -> dict[str, Any]:
    """A JSON object, for argparse."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a JSON object")
    return value


@contextlib.contextmanager
def signals_as_interrupt() -> Iterator[None]:
    """Makes SIGTERM, and SIGHUP of a terminal that closes, end servers as Ctrl-C does: by KeyboardInterrupt.

    Servers run in sessions of their own, which neither signal reaches. What is ignored (`nohup`) stays ignored. After
    one of them both are ignored, so that another (`timeout` sends two) does not break off what ends the servers.
    """
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, _interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is _interrupt:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for later in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(later, signal.SIG_IGN)
    raise KeyboardInterrupt
