"""vLLM's V2 model runner with asynchronous scheduling on a machine without a GPU, as they are the default on one.

vLLM brings a V2 runner for the CPU (`vllm/v1/worker/cpu/model_runner.py`); what it lacks is a Triton backend for the
CPU, in whose place Triton's interpreter runs the kernels. vLLM's platform for CPUs turns asynchronous scheduling off as
"not required", not as impossible.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any


def select() -> None:
    """Makes this process, and the engines it starts, use the V2 runner. Call before vLLM is imported."""
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    from vllm_prune.patches.after_import import run_after_import

    run_after_import("triton.backends", _let_the_interpreter_pass_for_a_backend)
    run_after_import("triton.runtime.interpreter", _take_masks_of_any_width)
    run_after_import("vllm.platforms.cpu", _schedule_asynchronously)


class _NoDriver:
    """Found active by vLLM, which imports Triton only then; whoever wants to compile with it learns the truth."""

    def __init__(self) -> None:
        raise RuntimeError("kernels are interpreted: there is no driver")  # what Inductor expects where there is none

    @staticmethod
    def is_active() -> bool:
        return True


def _let_the_interpreter_pass_for_a_backend() -> None:
    from triton import backends

    backends.backends["cpu"] = SimpleNamespace(driver=_NoDriver, compiler=None)


def _take_masks_of_any_width() -> None:
    """The interpreter computes some masks in wider integers and refuses to load by them; compiled, they are bits."""
    from triton import language as tl
    from triton.runtime import interpreter

    load = interpreter.InterpreterBuilder.create_masked_load

    def load_by_bits(self: Any, pointers: Any, mask: Any, *others: Any) -> Any:
        return load(self, pointers, interpreter.TensorHandle(mask.data.astype(bool), tl.int1), *others)

    interpreter.InterpreterBuilder.create_masked_load = load_by_bits


def _schedule_asynchronously() -> None:
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config.__func__

    def check_and_schedule_asynchronously(cls: Any, vllm_config: Any) -> None:
        wanted = vllm_config.scheduler_config.async_scheduling
        check(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = wanted is not False

    CpuPlatform.check_and_update_config = classmethod(check_and_schedule_asynchronously)
