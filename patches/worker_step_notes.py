"""Send what the model notes of a step along with the step's output."""

import functools
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_leading, require_source

_MODULE = "vllm.v1.worker.gpu_worker"
_TARGET = f"{_MODULE}:Worker"
_MARK = "_vllm_prune_sends_notes"


def _worker() -> type[Any]:
    from vllm.v1.worker.gpu_worker import Worker

    return Worker


def _verify() -> None:
    from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

    worker = _worker()
    require_leading(worker.execute_model, ("self", "scheduler_output"), f"{_TARGET}.execute_model")
    require_leading(worker.sample_tokens, ("self",), f"{_TARGET}.sample_tokens")
    require_source(ModelRunnerOutput, ("@dataclass class ModelRunnerOutput: ",), "vllm.v1.outputs:ModelRunnerOutput")
    get_output = AsyncModelRunnerOutput.get_output
    require_leading(get_output, ("self",), "vllm.v1.outputs:AsyncModelRunnerOutput.get_output")


def _install() -> None:
    worker = _worker()
    execute_model, sample_tokens = worker.execute_model, worker.sample_tokens

    @functools.wraps(execute_model)
    def execute(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        from vllm_prune.serving.worker.report import attach_notes, begin_step, require_dense_step, take_notes

        begin_step(self, scheduler_output)
        output = execute_model(self, scheduler_output, *args, **kwargs)
        require_dense_step(self)
        return output if output is None else attach_notes(output, take_notes(self))

    @functools.wraps(sample_tokens)
    def sample(self: Any, *args: Any, **kwargs: Any) -> Any:
        from vllm_prune.serving.worker.report import attach_notes, take_notes

        return attach_notes(sample_tokens(self, *args, **kwargs), take_notes(self))

    setattr(execute, _MARK, True)
    worker.execute_model, worker.sample_tokens = execute, sample


PATCH = Patch(
    name="worker_step_notes",
    target=_TARGET,
    process="worker",
    trigger=_MODULE,
    why=(
        "How long a video's encoding and pruning took, and that a method failed on it, is known in the worker only; "
        "vLLM's model has no way to say anything about a request but its hidden states."
    ),
    how=(
        "Wraps the two methods that return a step's output and hangs the model's notes on that object as an attribute, "
        "which pickling keeps. Without notes, and for other models, nothing changes. A step that went past the model's "
        "forward is noticed here, before anything of it leaves the worker."
    ),
    upstream=("https://github.com/vllm-project/vllm/issues/45098",),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_worker().execute_model, _MARK),
    verify=_verify,
    install=_install,
)
