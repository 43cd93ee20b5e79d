"""Writes what a program of this folder measured, with where it comes from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_prune.bench.throughput.provenance import describe


def measure_into(path: Path, command: Sequence[str], measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Measures, writes and returns the result; the machine is described first, while its load is that of others.

    Args:
        path: A JSON file, in a folder that need not exist.
        command: What the user ran.
        measure: What it found, by name.
    """
    place = describe()
    results = {"command": list(command), **measure(), "provenance": place}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    return results
