"""Waiting for room on a Ray cluster, for a while that a person at a terminal has."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

WAIT = "VLLM_PRUNE_RAY_WAIT_S"
"""Environment variable: how long to wait for room, in seconds."""
DEFAULT_WAIT_S = 20.0


def wait_for_placement(group: Any) -> None:
    """Returns once Ray has reserved the bundles of placement group `group`.

    Raises:
        ValueError: It has not after `wait_seconds()`; the group is removed.
    """
    import ray

    limit = wait_seconds()
    ready, _ = ray.wait([group.ready()], timeout=limit)
    if ready:
        return
    message = no_room(group.bundle_specs, ray.cluster_resources(), ray.available_resources(), limit)
    ray.util.remove_placement_group(group)
    raise ValueError(message)


def wait_seconds() -> float:
    """What VLLM_PRUNE_RAY_WAIT_S says.

    Raises:
        ValueError: It is no number of seconds.
    """
    given = os.environ.get(WAIT, str(DEFAULT_WAIT_S))
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{WAIT}={given!r}: must be a number of seconds, 0 or more, such as {DEFAULT_WAIT_S:g}")
    return seconds


def no_room(
    bundles: Sequence[Mapping[str, float]], total: Mapping[str, float], free: Mapping[str, float], waited: float
) -> str:
    """What to tell a user whose workers do not fit.

    Args:
        bundles: The resources that each worker needs.
        total: Those of all nodes.
        free: Those of them that nobody holds.
        waited: Seconds.
    """
    needed: Counter[str] = Counter()
    for bundle in bundles:
        needed.update(bundle)
    asked = ", ".join(f"{count:g} {name}" for name, count in needed.items())
    there = ", ".join(f"{total.get(name, 0):g} {name} ({free.get(name, 0):g} free)" for name in needed)
    return (
        f"no room on the Ray cluster after {waited:g} s: {len(bundles)} workers need {asked}, and all nodes together "
        f"have {there}. Lower --tensor-parallel-size, stop what holds the rest (`ray status`), or add nodes with "
        f"`ray start --address HEAD:PORT`; if the cluster grows by itself, set {WAIT} to the seconds that takes"
    )
