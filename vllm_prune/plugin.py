"""Entry point of the `vllm.general_plugins` group: vLLM calls `register` in every one of its processes."""

from __future__ import annotations


def register() -> None:
    """Applies the patches and makes the pruning variants known to vLLM. Safe to call twice.

    Raises:
        UnsupportedVllmError: The installed vLLM is not a supported one.
        PatchError: A patch's target does not look as expected.
    """
    from vllm_prune.patches import apply_all
    from vllm_prune.versions import require_supported_vllm

    require_supported_vllm()
    apply_all()
    _register_variants()


def _register_variants() -> None:
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from vllm_prune.serving.config_hook import hook_behind
    from vllm_prune.serving.wire.architectures import variants

    known = ModelRegistry.get_supported_archs()
    for name, (architecture, path) in variants().items():
        if name not in known:
            ModelRegistry.register_model(name, path)
        MODELS_CONFIG_MAP[name] = hook_behind(MODELS_CONFIG_MAP.get(architecture))
