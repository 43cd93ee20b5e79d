"""How a program of this folder ends when it is told to: by then its servers and engines have ended too."""

from __future__ import annotations

import sys
from collections.abc import Callable

from vllm_prune.bench.options import FAILED, INTERRUPTED, signals_as_interrupt
from vllm_prune.bench.throughput.errors import BenchmarkError


def exit_from(name: str, main: Callable[[], int | None]) -> None:
    """Runs `main` and exits with its status; Ctrl-C, SIGTERM, SIGHUP and BenchmarkError end it with one line.

    Args:
        name: Of the module, for that line.
        main: The program.
    """
    try:
        with signals_as_interrupt():
            status = main()
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        status = INTERRUPTED
    except BenchmarkError as error:
        print(f"{name}: {error}", file=sys.stderr)
        status = FAILED
    sys.exit(status)
