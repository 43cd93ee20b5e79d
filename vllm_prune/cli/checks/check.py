"""The result of one check."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How a check ended; FAIL makes `vllm-prune doctor` exit with 1, and BLOCKED follows one."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    BLOCKED = "blocked"
    """By the same cause as a check that failed before; only that one is told."""


@dataclass(frozen=True)
class Check:
    """What was looked at, what was found, and what to do about it."""

    name: str
    status: Status
    detail: str
    remedy: str = ""
    cause: str = ""
    """The message of the error behind a failure, as far as others may have the same."""


def ok(name: str, detail: str) -> Check:
    """Give a check that found nothing wrong."""
    return Check(name, Status.OK, detail)


def warn(name: str, detail: str, remedy: str) -> Check:
    """Give a check that found something that hurts in some uses."""
    return Check(name, Status.WARN, detail, remedy)


def fail(name: str, detail: str, remedy: str, cause: str = "") -> Check:
    """Give a check that found something broken."""
    return Check(name, Status.FAIL, detail, remedy, cause)


def causes_once(checks: Iterable[Check]) -> Iterator[Check]:
    """Checks in which every cause fails one, the first; the others that it makes fail are blocked by that.

    >>> [c.status.value for c in causes_once([fail("a", "", "", "x"), ok("b", ""), fail("c", "", "", "x")])]
    ['fail', 'ok', 'blocked']
    """
    first: dict[str, str] = {}
    for check in checks:
        failed = check.status is Status.FAIL and check.cause
        blocker = first.setdefault(check.cause, check.name) if failed else check.name
        if blocker == check.name:
            yield check
        else:
            yield Check(check.name, Status.BLOCKED, f"not to be checked before {blocker} is mended", cause=check.cause)
