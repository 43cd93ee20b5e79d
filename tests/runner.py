"""Which of vLLM's model runners the tests use: V1, vLLM's default on a CPU, or V2, its default on a GPU.

    PRUNE_TEST_RUNNER=v2 pytest tests/dense

A process has one runner, and the choice has to be made before vLLM is imported; hence an environment variable. V2 comes
with asynchronous scheduling: two batches are in flight, as on a GPU. (Not of a pooling model, for which vLLM schedules
synchronously unless told otherwise.) On a machine with a GPU the same tests run there, in float32 and through vLLM's
Triton backend, the one that has it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_prune.gpus import list_gpus

VARIABLE = "PRUNE_TEST_RUNNER"
RUNNER = os.environ.get(VARIABLE, "v1")
IS_V2 = RUNNER == "v2"
ON_GPU = bool(list_gpus())
_MODULES = (
    {"v1": "vllm.v1.worker.gpu_model_runner", "v2": "vllm.v1.worker.gpu.model_runner"}
    if ON_GPU
    else {"v1": "vllm.v1.worker.cpu_model_runner", "v2": "vllm.v1.worker.cpu.model_runner"}
)
OPTIONS: dict[str, Any] = {"attention_backend": "TRITON_ATTN"} if ON_GPU else {}
"""For `vllm.LLM`, of engines whose numbers are compared."""
_EXACT = {"NVIDIA_TF32_OVERRIDE": "0"}
_SHIM = Path(__file__).with_name("v2_on_cpu")


def select() -> None:
    """Makes this process and all it starts use the chosen runner. Call before vLLM is imported."""
    if RUNNER not in _MODULES:
        raise pytest.UsageError(f"{VARIABLE}={RUNNER}: is not one of {', '.join(_MODULES)}")
    if ON_GPU:
        os.environ.update(_EXACT, VLLM_USE_V2_MODEL_RUNNER=str(int(IS_V2)))
    elif IS_V2:
        sys.path.append(str(_SHIM))
        import select_v2

        select_v2.select()
        paths = [str(_SHIM), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)


def check(engine_core: Any) -> None:
    """Raises unless an engine core in this process has the chosen runner, and with V2 two batches in flight.

    Of a pooling model vLLM has two on request only; then the scheduler has to be the one that was asked for.
    """
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    config = engine_core.vllm_config
    assert bool(config.use_v2_model_runner) == IS_V2, f"not the {RUNNER} runner"
    worker = getattr(engine_core.model_executor, "driver_worker", None)
    if worker is not None:
        found = type(worker.worker.model_runner).__module__
        assert found == _MODULES[RUNNER], f"{found} is not the {RUNNER} runner"
    asynchronous = bool(config.scheduler_config.async_scheduling)
    if IS_V2:
        assert asynchronous or config.model_config.runner_type == "pooling", "not scheduled asynchronously"
        assert isinstance(engine_core.scheduler, AsyncScheduler) == asynchronous, type(engine_core.scheduler)
        assert engine_core.batch_queue_size == 1 + asynchronous, engine_core.batch_queue_size
