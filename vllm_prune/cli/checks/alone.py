"""Runs checks so that one which ends in an exception hides no other."""

from collections.abc import Callable, Iterable

from vllm_prune.cli.checks.check import Check, fail
from vllm_prune.cli.checks.remedies import BROKEN


def alone(name: str, check: Callable[[], Check | Iterable[Check]]) -> list[Check]:
    """What `check` found; one failure called `name` where it raised."""
    try:
        found = check()
        return [found] if isinstance(found, Check) else list(found)
    except Exception as error:  # whatever it is, it belongs into the report
        return [fail(name, f"{type(error).__name__}: {error}", BROKEN, cause=str(error))]
