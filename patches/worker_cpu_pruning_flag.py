"""Tell the CPU model runner that the model prunes multimodal tokens, as the GPU model runner does."""

import functools
import inspect
import sys
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_leading, require_source

_MODULE = "vllm.v1.worker.cpu_model_runner"
_TARGET = f"{_MODULE}:CPUModelRunner.load_model"
_MARK = "_vllm_prune_sets_pruning_flag"


def _runner() -> type[Any]:
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    return CPUModelRunner


def _needed() -> bool:
    from vllm.platforms import current_platform

    return current_platform.is_cpu() and "is_multimodal_pruning_enabled" not in inspect.getsource(_runner().load_model)


def _applied() -> bool:
    # Asked on GPU machines too, where the CPU runner must not be imported.
    return _MODULE in sys.modules and hasattr(_runner().load_model, _MARK)


def _verify() -> None:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    require_leading(_runner().load_model, ("self",), _TARGET)
    require_source(_runner().load_model, ("self.model = get_model(vllm_config=self.vllm_config)",), _TARGET)
    gpu_condition = """
        self.is_multimodal_pruning_enabled = (
            supports_multimodal_pruning(self.get_model())
            and mm_config is not None
            and mm_config.is_multimodal_pruning_enabled()
        )
    """
    gpu_target = "vllm.v1.worker.gpu_model_runner:GPUModelRunner.load_model"
    require_source(GPUModelRunner.load_model, (gpu_condition,), gpu_target)


def _install() -> None:
    from vllm.model_executor.models.interfaces import supports_multimodal_pruning

    runner = _runner()
    original = runner.load_model

    @functools.wraps(original)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        mm_config = self.model_config.multimodal_config
        self.is_multimodal_pruning_enabled = (
            supports_multimodal_pruning(self.get_model())
            and mm_config is not None
            and mm_config.is_multimodal_pruning_enabled()
        )

    setattr(load_model, _MARK, True)
    runner.load_model = load_model


PATCH = Patch(
    name="worker_cpu_pruning_flag",
    target=_TARGET,
    process="worker, on the CPU",
    trigger=_MODULE,
    why=(
        "CPUModelRunner overrides load_model and leaves `is_multimodal_pruning_enabled` false, so the position columns "
        "of pruned embeddings are never stripped: EVS, VidCom2 and our variants die with a shape error on the CPU."
    ),
    how="Wraps load_model and sets the flag afterwards, by the condition of GPUModelRunner.load_model.",
    upstream=(
        "https://github.com/vllm-project/vllm/pull/22980",
        "https://github.com/vllm-project/vllm-ascend/pull/11067",
    ),
    remove_when="vllm>=0.33",
    needed=_needed,
    applied=_applied,
    verify=_verify,
    install=_install,
)
