"""vllm-prune: fewer video tokens, before vLLM gives out KV blocks.

This package is imported at every interpreter start (see patches/startup.py), so it must stay cheap: nothing here may
import torch or vLLM.
"""

from vllm_prune._version import __version__ as __version__


def __getattr__(name: str) -> object:
    """Loads the public names when they are first asked for."""
    if name in ("PruneConfig", "Stage1Config"):
        from vllm_prune import config

        return getattr(config, name)
    if name == "engine_args":
        from vllm_prune.engine import engine_args

        return engine_args
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
