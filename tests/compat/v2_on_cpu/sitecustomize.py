"""Lets vLLM's V2 model runner, which needs Triton, run on a CPU: Triton's interpreter passes for a CPU backend.

In a folder that goes on PYTHONPATH, with VLLM_USE_V2_MODEL_RUNNER=1 and TRITON_INTERPRET=1.
"""

import types

from vllm_prune.patches.after_import import run_after_import


def _add_backend() -> None:
    import triton.backends

    driver = types.SimpleNamespace(is_active=lambda: True)
    triton.backends.backends["cpu"] = types.SimpleNamespace(driver=driver, compiler=None)


run_after_import("triton.backends", _add_backend)
