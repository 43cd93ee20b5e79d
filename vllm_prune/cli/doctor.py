"""`vllm-prune doctor`: check this installation and say how to mend what is wrong."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from vllm_prune._version import __version__
from vllm_prune.cli.checks.alone import alone
from vllm_prune.cli.checks.check import Check, Status, causes_once
from vllm_prune.cli.checks.environment import (
    check_media_libraries,
    check_startup,
    check_versions,
    check_vllm_command,
)
from vllm_prune.cli.checks.probe import check_inside_vllm

_PARTS = {
    "versions": check_versions,
    "media libraries": check_media_libraries,
    "start-up file": check_startup,
    "inside vLLM": check_inside_vllm,
    "vllm command": check_vllm_command,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vllm-prune doctor`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument("--ray", metavar="HOST:PORT", help="check every node of this Ray cluster, and only that")
    parser.add_argument("--model", metavar="FOLDER", help="with --ray: a folder that every node has to have")


def run(args: argparse.Namespace) -> int:
    """Run all checks; return 1 if one failed, else 0."""
    if args.model and not args.ray:
        print("vllm-prune doctor: --model is for a cluster's nodes; give --ray HOST:PORT as well", file=sys.stderr)
        return 2
    ray = {"Ray cluster": partial(_check_ray, args.ray, args.model, show=not args.json)}
    parts = ray if args.ray else _PARTS
    checks = _run_checks(parts, show=not args.json)
    healthy = all(check.status is not Status.FAIL for check in checks)
    if args.json:
        found = [dataclasses.asdict(check) for check in checks]
        print(json.dumps({"version": __version__, "ok": healthy, "checks": found}, indent=2))
    else:
        print(_summary(checks))
    return 0 if healthy else 1


def _run_checks(parts: Mapping[str, Callable[[], Iterable[Check]]], *, show: bool) -> list[Check]:
    checks = []
    for check in causes_once(check for name, part in parts.items() for check in alone(name, part)):
        checks.append(check)
        if show and check.status is not Status.BLOCKED:  # at once: importing vLLM takes a while
            print(_format(check), flush=True)
    return checks


def _check_ray(address: str, model: str | None, *, show: bool) -> list[Check]:
    from vllm_prune.cli.checks.ray import check_ray_cluster

    checks, table = check_ray_cluster(address, model)
    if show and table:
        print(f"{table}\n", flush=True)
    return checks


def _format(check: Check) -> str:
    line = f"{check.status:4}  {check.name}: {check.detail}"
    return f"{line}\n      mend: {check.remedy}" if check.remedy else line


def _summary(checks: list[Check]) -> str:
    counts = {status: sum(check.status is status for check in checks) for status in Status}
    line = f"{counts[Status.OK]} ok, {counts[Status.WARN]} to note, {counts[Status.FAIL]} to mend"
    if not counts[Status.BLOCKED]:
        return line
    names = ", ".join(check.name for check in checks if check.status is Status.BLOCKED)
    return f"{line}; {counts[Status.BLOCKED]} not to be checked before that: {names}"
