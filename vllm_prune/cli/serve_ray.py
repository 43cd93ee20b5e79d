"""What `vllm-prune serve` checks about Ray before it hands over to vLLM."""

from __future__ import annotations

import argparse
import importlib.util


def check_ray(options: list[str]) -> None:
    """Looks whether Ray can be imported, if the options of `vllm serve` ask for it.

    Raises:
        ValueError: They do, and it cannot.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--distributed-executor-backend", "--distributed_executor_backend")
    backend = parser.parse_known_args(options)[0].distributed_executor_backend
    if backend == "ray" and not _is_installed():
        raise ValueError(
            "--distributed-executor-backend ray: Ray is not installed here; pip install 'vllm-prune[ray]' on every node"
        )


def _is_installed() -> bool:
    try:
        # Not "ray": a folder of that name in the path would do.
        return importlib.util.find_spec("ray.util") is not None
    except ImportError:
        return False
