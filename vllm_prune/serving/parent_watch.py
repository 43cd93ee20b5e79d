"""Ends a child process of a server within seconds of its parent, however that ended.

A parent that is killed (SIGKILL, the kernel's out-of-memory killer) tells its children nothing. Linux could
(`PR_SET_PDEATHSIG`), but it counts the thread that started a child as its parent, and servers start some in threads.
"""

from __future__ import annotations

import functools
import importlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

logger = logging.getLogger("vllm.vllm_prune.parent_watch")  # below vLLM's own, whose handlers it shares

_PERIOD_S = 1.0
_GRACE_S = 5.0
"""Seconds that a process has to end in order before it is killed, with its own children."""


class Watching:
    """The main function of a child process, which ends with its parent.

    It takes the original's place in the parent. What a new process is given of it is where the original is, since that
    process begins before vLLM loads plugins in it.
    """

    def __init__(self, module: str, name: str) -> None:
        """Of the function called `name` (with dots, below a class) in `module`."""
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        self._place = (module, name)
        self._main: Callable[..., Any] = found._main if isinstance(found, Watching) else found
        functools.update_wrapper(self, self._main)

    def __reduce__(self) -> tuple[type[Watching], tuple[str, str]]:
        return Watching, self._place

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        watch_parent()
        return self._main(*args, **kwargs)


def watch_parent() -> None:
    """Starts a thread that waits for the end of the parent; nothing happens in a process that has none in Python."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent, os.getppid()), daemon=True, name="ParentWatch").start()


def _watch(parent: Any, parent_pid: int) -> None:
    # Two signs, since each can come late: a sibling may hold the pipe behind `is_alive` open, and behind a fork server
    # `getppid` tells of the server.
    while parent.is_alive() and os.getppid() == parent_pid:
        time.sleep(_PERIOD_S)
    logger.error("The parent process %s (%d) is gone; ending.", parent.name, parent.pid)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    os.kill(os.getpid(), signal.SIGKILL)
