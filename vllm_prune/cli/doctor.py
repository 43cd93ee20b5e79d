"""`vllm-prune doctor`: check this installation and say how to mend what is wrong."""

import argparse
import dataclasses
import json
from collections.abc import Iterator

from vllm_prune._version import __version__
from vllm_prune.cli.checks.check import Check, Status
from vllm_prune.cli.checks.environment import (
    check_media_libraries,
    check_startup,
    check_versions,
    check_vllm_command,
)
from vllm_prune.cli.checks.probe import check_inside_vllm

_PARTS = (check_versions, check_media_libraries, check_startup, check_inside_vllm, check_vllm_command)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vllm-prune doctor`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def run(args: argparse.Namespace) -> int:
    """Run all checks; return 1 if one failed, else 0."""
    checks = _run_checks(show=not args.json)
    healthy = all(check.status is not Status.FAIL for check in checks)
    if args.json:
        found = [dataclasses.asdict(check) for check in checks]
        print(json.dumps({"version": __version__, "ok": healthy, "checks": found}, indent=2))
    else:
        print(_summary(checks))
    return 0 if healthy else 1


def _run_checks(*, show: bool) -> list[Check]:
    checks = []
    for check in _each_check():
        checks.append(check)
        if show:  # at once: importing vLLM takes a while
            print(_format(check), flush=True)
    return checks


def _each_check() -> Iterator[Check]:
    for part in _PARTS:
        yield from part()


def _format(check: Check) -> str:
    line = f"{check.status:4}  {check.name}: {check.detail}"
    return f"{line}\n      mend: {check.remedy}" if check.remedy else line


def _summary(checks: list[Check]) -> str:
    counts = {status: sum(check.status is status for check in checks) for status in Status}
    return f"{counts[Status.OK]} ok, {counts[Status.WARN]} to note, {counts[Status.FAIL]} to mend"
