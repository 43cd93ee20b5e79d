"""What a benchmark needs besides vLLM: told before it starts, with the line that installs it."""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Callable
from typing import Any

from vllm_prune.bench.throughput.errors import BenchmarkError


def install_line(*packages: str) -> str:
    """The command that puts `packages` into this environment."""
    return shlex.join([sys.executable, "-m", "pip", "install", *packages])


def require(module: str, package: str, purpose: str) -> None:
    """Check that `module` can be imported.

    Raises:
        BenchmarkError: It cannot; the message has the line that installs `package`.
    """
    if not _can_import(module):
        raise BenchmarkError(f"{purpose} needs {package}, which is not installed: {install_line(package)}")


def announce_pictures() -> None:
    """Say at the start if no picture will be drawn at the end."""
    if not _can_import("matplotlib"):
        line = install_line("matplotlib")
        print(f"no picture will be drawn, as matplotlib is not installed: {line}", file=sys.stderr, flush=True)


def draw_if_possible(draw: Callable[..., None], *arguments: Any) -> None:
    """Call `draw(*arguments)` where matplotlib is installed."""
    if _can_import("matplotlib"):
        draw(*arguments)


def suffixes() -> str:
    """Of the files that a benchmark writes, for the line that names them."""
    return ".json, .md, .png" if _can_import("matplotlib") else ".json, .md"


def _can_import(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True
