"""What `vllm-prune serve` checks about Ray before it hands over to vLLM."""

from __future__ import annotations

import argparse
import importlib.util
import os

from vllm_prune.cluster.errors import ClusterError
from vllm_prune.cluster.ports import require_reachable


def check_ray(options: list[str]) -> None:
    """Looks whether Ray can be imported, and answers at `RAY_ADDRESS`, if the options of `vllm serve` ask for it.

    Ray itself would go on trying for minutes.

    Raises:
        ValueError: They do, and it cannot, or does not.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--distributed-executor-backend", "--distributed_executor_backend")
    backend = parser.parse_known_args(options)[0].distributed_executor_backend
    if backend != "ray":
        return
    if not _is_installed():
        raise ValueError(
            "--distributed-executor-backend ray: Ray is not installed here; pip install 'vllm-prune[ray]' on every node"
        )
    address = os.environ.get("RAY_ADDRESS", "")
    if ":" in address:  # else "auto", "local" or nothing: Ray finds one on this machine, or starts it
        try:
            require_reachable(address.removeprefix("ray://"))
        except ClusterError as error:
            raise ValueError(f"RAY_ADDRESS={address}: {error}; {error.remedy}") from error


def _is_installed() -> bool:
    try:
        # Not "ray": a folder of that name in the path would do.
        return importlib.util.find_spec("ray.util") is not None
    except ImportError:
        return False
