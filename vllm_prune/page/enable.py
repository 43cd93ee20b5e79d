"""What a server needs so that vLLM loads the page's plugin."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path

PLUGIN = "prune_page"
_FREE_GROUPS = (
    "vllm.general_plugins",
    "vllm.io_processor_plugins",
    "vllm.platform_plugins",
    "vllm.stat_logger_plugins",
)
"""Groups whose plugins vLLM loads where `VLLM_PLUGINS` is not set."""


def allowed_plugins(environment: Mapping[str, str]) -> str:
    """`VLLM_PLUGINS` that allows the page besides whatever is allowed already.

    An endpoint plugin must be named there; naming one shuts out every other plugin that is not, so that all those that
    would have been loaded are named as well.
    """
    given = environment.get("VLLM_PLUGINS")
    names = {point.name for group in _FREE_GROUPS for point in entry_points(group=group)}
    allowed = sorted(names) if given is None else [name for name in given.split(",") if name]
    return ",".join([*(name for name in allowed if name != PLUGIN), PLUGIN])


def trace_folder(environment: Mapping[str, str]) -> Path:
    """Where a server with the page writes its traces if it is not told where."""
    cache = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "vllm-prune" / "page"
