"""Check that vLLM sees the plugin, that it registers, and which architectures it brings."""

import os
from functools import partial
from importlib.metadata import EntryPoint, entry_points

from vllm_prune.cli.checks.alone import alone
from vllm_prune.cli.checks.check import Check, fail, ok

_GROUP = "vllm.general_plugins"
_NAME = "prune"
_REINSTALL = "reinstall vllm-prune with pip: the entry point is part of its metadata"


def check_plugin() -> list[Check]:
    """Find the entry point, call it twice as vLLM may, and look for its architectures."""
    found = [point for point in entry_points(group=_GROUP) if point.name == _NAME]
    if not found:
        return [fail("plugin entry point", f"no `{_NAME}` in the group {_GROUP}", _REINSTALL)]
    visible = ok("plugin entry point", f"{_GROUP}: {_NAME} = {found[0].value}")
    return [
        visible,
        *alone("VLLM_PLUGINS", _check_allowed),
        *alone("plugin registration", partial(_check_registration, found[0])),
        *alone("architectures", _check_architectures),
    ]


def _check_allowed() -> Check:
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and _NAME not in allowed.split(","):
        remedy = f"add `{_NAME}` to VLLM_PLUGINS, or unset it"
        return fail("VLLM_PLUGINS", f"VLLM_PLUGINS={allowed} keeps vLLM from loading the plugin", remedy)
    return ok("VLLM_PLUGINS", "lets the plugin load")


def _check_registration(point: EntryPoint) -> Check:
    register = point.load()
    register()
    register()
    return ok("plugin registration", "register() ran, twice, without an error")


def _check_architectures() -> Check:
    from vllm import ModelRegistry

    models = ModelRegistry.models.items()
    ours = sorted(name for name, model in models if getattr(model, "module_name", "").startswith("vllm_prune."))
    if not ours:
        return fail("architectures", "vLLM's model registry has none of vllm-prune's", _REINSTALL)
    return ok("architectures", ", ".join(ours))
