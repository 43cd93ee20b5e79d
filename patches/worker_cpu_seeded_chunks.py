"""On CPUs, let a request with a seed be prefilled in several steps."""

import functools
import inspect
import sys
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_leading, require_source

_MODULE = "vllm.v1.worker.cpu_model_runner"
_TARGET = f"{_MODULE}:CPUModelRunner.sample_tokens"
_MARK = "_vllm_prune_keeps_generators"
_REWINDS = "gen.set_offset(gen.get_offset() - 4)"


def _runner() -> type[Any]:
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    return CPUModelRunner


def _needed() -> bool:
    from vllm.platforms import current_platform

    return current_platform.is_cpu() and _REWINDS in inspect.getsource(_runner()._bookkeeping_sync)


def _applied() -> bool:
    # Asked on GPU machines too, where the CPU runner must not be imported.
    return _MODULE in sys.modules and hasattr(_runner().sample_tokens, _MARK)


def _verify() -> None:
    from vllm.v1.worker.gpu_input_batch import InputBatch
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    target = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
    require_leading(GPUModelRunner.sample_tokens, ("self",), f"{target}.sample_tokens")
    rewound = (
        "self.discard_request_mask.np[:num_reqs]",
        "gen = self.input_batch.generators.get(int(i))",
        "if gen is not None:",
        _REWINDS,
    )
    require_source(GPUModelRunner._bookkeeping_sync, rewound, f"{target}._bookkeeping_sync")
    shared = ("generators=self.generators,",)
    made = "vllm.v1.worker.gpu_input_batch:InputBatch._make_sampling_metadata"
    require_source(InputBatch._make_sampling_metadata, shared, made)


def _install() -> None:
    runner = _runner()
    original = runner.sample_tokens

    @functools.wraps(original)
    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators, discarded = self.input_batch.generators, self.discard_request_mask.np
        # Without one, what is sampled for a request comes from torch's own generator; here nobody reads it.
        hidden = {i: generators.pop(i) for i in list(generators) if i < self.input_batch.num_reqs and discarded[i]}
        try:
            return original(self, *args, **kwargs)
        finally:
            generators.update(hidden)

    setattr(sample_tokens, _MARK, True)
    runner.sample_tokens = sample_tokens


PATCH = Patch(
    name="worker_cpu_seeded_chunks",
    target=_TARGET,
    process="worker, on the CPU",
    trigger=_MODULE,
    why=(
        "A step that computes a part of a prompt samples a token that is thrown away, and turns the generator of a "
        "request with a seed back by an offset that only those of GPUs have: a prompt of more than one step, such as a "
        "long video's, ends the engine (`CPU Generator does not use offset`)."
    ),
    how=(
        "Wraps the method and takes such requests' generators out of the batch meanwhile, so that they do not move and "
        "a seed gives the same tokens in however many steps."
    ),
    upstream=("https://github.com/vllm-project/vllm/pull/10097",),
    remove_when="vllm>=0.33",
    needed=_needed,
    applied=_applied,
    verify=_verify,
    install=_install,
)
