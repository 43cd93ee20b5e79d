"""How every benchmark's command ends: done, refused, failed or interrupted, each with one line and its exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from vllm_prune.bench.needs import announce_pictures
from vllm_prune.bench.options import FAILED, INTERRUPTED, USAGE, signals_as_interrupt
from vllm_prune.bench.throughput.errors import BenchmarkError

P = TypeVar("P")


@dataclass(frozen=True, kw_only=True)
class Endings:
    """What a benchmark says at its end besides the error.

    name: of the subcommand.
    interrupted: what Ctrl-C, SIGTERM or SIGHUP leaves, and how to go on.
    failed: where to look after a failure; may be "".
    """

    name: str
    interrupted: str
    failed: str = ""


def run_planned(plan: Callable[[], P], measure: Callable[[P], object], endings: Endings) -> int:
    """Make a plan, measure by it, and return the exit status.

    `plan` raises BenchmarkError or FileNotFoundError for an option that cannot be used, `measure` for a run that cannot
    go on.
    """
    try:
        announce_pictures()
        with signals_as_interrupt():
            try:
                planned = plan()
            except (BenchmarkError, FileNotFoundError) as error:
                return _tell(endings.name, str(error), USAGE)
            measure(planned)
    except (BenchmarkError, FileNotFoundError) as error:
        return _tell(endings.name, "\n".join(filter(None, [str(error), endings.failed])), FAILED)
    except KeyboardInterrupt:
        return _tell(endings.name, f"interrupted; {endings.interrupted}", INTERRUPTED)
    return 0


def _tell(name: str, message: str, status: int) -> int:
    print(f"vllm-prune bench {name}: {message}", file=sys.stderr)
    return status
