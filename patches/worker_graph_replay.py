"""Run the model, not a captured replay of all of it, in steps with a dense prefix."""

import functools
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_leading, require_source

_MODULE = "vllm.compilation.breakable_cudagraph"
_TARGET = f"{_MODULE}:BreakableCUDAGraphWrapper.__call__"
_MARK = "_vllm_prune_runs_dense_steps"


def _wrapper() -> type[Any]:
    from vllm.compilation.breakable_cudagraph import BreakableCUDAGraphWrapper

    return BreakableCUDAGraphWrapper


def _verify() -> None:
    wrapper = _wrapper()
    require_leading(wrapper.__call__, ("self",), _TARGET)
    require_source(wrapper.__call__, ("return self.runnable(*args, **kwargs)",), _TARGET)
    require_source(wrapper.__init__, ("self.runnable = runnable",), f"{_MODULE}:BreakableCUDAGraphWrapper.__init__")


def _install() -> None:
    wrapper = _wrapper()
    call = wrapper.__call__

    @functools.wraps(call)
    def call_or_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(self.runnable, "waits_for_dense_step", False):
            return self.runnable(*args, **kwargs)
        return call(self, *args, **kwargs)

    setattr(call_or_run, _MARK, True)
    wrapper.__call__ = call_or_run


PATCH = Patch(
    name="worker_graph_replay",
    target=_TARGET,
    process="worker",
    trigger=_MODULE,
    why=(
        "With VLLM_USE_BREAKABLE_CUDAGRAPH=1, which VLLM_BATCH_INVARIANT=1 sets for some models, a step of mixed "
        "requests replays a capture of the whole model and its forward is not called: a video's tokens would stay "
        "unchosen."
    ),
    how=(
        "Wraps the call: a step with videos whose tokens the question chooses runs the model itself, as vLLM does "
        "where no graph fits the step. All other steps go on to vLLM's."
    ),
    upstream=(
        "https://github.com/vllm-project/vllm/pull/42304",
        "https://github.com/vllm-project/vllm/pull/44050",
    ),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_wrapper().__call__, _MARK),
    verify=_verify,
    install=_install,
)
