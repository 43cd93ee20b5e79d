"""The one place where the version of vllm-prune is written."""

__version__ = "0.1.0"
