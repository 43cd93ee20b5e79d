"""The suites that compare numbers, on a GPU: float32 through vLLM's Triton backend, with both model runners.

They hold the exactness cases (chunks, prefix hits, preemption, several videos in a step, configurations of requests),
two ranks without Ray, and what is refused. Each runs in a pytest of its own, as the runner is chosen before any import.
One of them runs once more under NVIDIA's compute-sanitizer, which sees accesses beyond a tensor's memory.
"""

from __future__ import annotations

import os
import shutil
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


@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="needs the CUDA toolkit's compute-sanitizer")
def test_dense_steps_stay_within_their_memory() -> None:
    sanitizer = ["compute-sanitizer", "--tool", "memcheck", "--target-processes", "all", "--error-exitcode", "99"]
    case = "tests/dense/test_dense_exactness.py::test_cold_warm_and_in_chunks[2]"
    environment = {**os.environ, "PRUNE_TEST_RUNNER": "v2", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [*sanitizer, sys.executable, "-m", "pytest", "-q", case]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600, env=environment)
    assert run.returncode == 0, run.stdout[-6000:]
    assert "ERROR SUMMARY: 0 errors" in run.stdout
