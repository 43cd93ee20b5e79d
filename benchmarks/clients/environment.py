"""A client's own environment, so that what it needs cannot change vLLM's."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

_REQUIREMENTS = Path(__file__).with_name("requirements")


def find_python(folder: Path, client: str) -> Path:
    """The interpreter of the environment in `folder`, which is made, with the pinned packages, if it is not there.

    Raises:
        subprocess.CalledProcessError: pip could not install them.
    """
    python, installed = folder / "bin" / "python", folder / "installed.txt"
    requirements = _REQUIREMENTS / f"{client}.txt"
    wanted = requirements.read_text()
    if not python.exists():
        venv.create(folder, with_pip=True)
    if not installed.exists() or installed.read_text() != wanted:
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--requirement", requirements], check=True)
        installed.write_text(wanted)
    return python


def installed_version(python: Path, package: str) -> str:
    """The version of a package in the environment of `python`."""
    script = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", script], check=True, capture_output=True, text=True).stdout.strip()
