"""What a command does when the program that read its output has ended, as `head` does after a few lines."""

from __future__ import annotations

import os
import select
import sys
from typing import TextIO

CLOSED_PIPE = 141
"""Exit status: what a shell reports of a program that SIGPIPE ended (128 + 13)."""


def is_closed(stream: TextIO) -> bool:
    """Whether `stream` writes into a pipe or socket that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return any(events & select.POLLERR for _, events in poll.poll(0))
    except (OSError, ValueError):  # no file behind it
        return False


def drop_output() -> None:
    """Sends what is still in standard output's buffer nowhere, so that Python's own end does not trip over it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
