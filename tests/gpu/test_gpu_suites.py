"""The suites that compare numbers, on a GPU: float32 through vLLM's Triton backend, with both model runners.

They hold the exactness cases (chunks, prefix hits, preemption, several videos in a step, configurations of requests),
two ranks without Ray, and what is refused. Each runs in a pytest of its own, as the runner is chosen before any import.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
ROOT = Path(__file__).parents[2]
SUITES = {
    "dense": ["tests/dense"],
    "positions and caches": [f"tests/serving/test_serving_{name}.py" for name in ("positions", "caching", "counts")],
    "pixels": ["tests/pixels"],
}
NEEDS_TWO = "two_ranks"


@pytest.mark.parametrize("runner", ["v1", "v2"])
@pytest.mark.parametrize("name", SUITES)
def test_suite(name: str, runner: str) -> None:
    several = torch.cuda.device_count() > 1
    chosen = [] if several else ["-k", f"not ({NEEDS_TWO})"]
    # vLLM's own detector of waits of the host: prints where, and lets the step go on.
    environment = {**os.environ, "PRUNE_TEST_RUNNER": runner, "VLLM_GPU_SYNC_CHECK": "warn"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not gpu", *chosen, *SUITES[name]]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, env=environment)
    print(run.stdout[-2000:])
    assert run.returncode == 0, run.stdout[-6000:]
