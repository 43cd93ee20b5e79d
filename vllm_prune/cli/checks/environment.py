"""Checks of the Python environment: versions, companions of torch, the start-up file, the `vllm` command."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from vllm_prune.cli.checks.check import Check, fail, ok, warn
from vllm_prune.cli.checks.remedies import set_up
from vllm_prune.supported import SUPPORTED_VLLM
from vllm_prune.versions import BrokenVllmError, InstalledVllm, UnsupportedVllmError, require_supported_vllm

_LIBRARIES = ("torch", "torchvision", "transformers")
_TIMEOUT_S = 120


def check_versions() -> list[Check]:
    """Compare Python and vLLM with what is supported, and name the libraries that matter."""
    return [_check_vllm(), *(_check_installed(name) for name in _LIBRARIES)]


def _check_vllm() -> Check:
    try:
        found = require_supported_vllm()
        absent = _absent_files(found)
    except BrokenVllmError as error:
        return fail("vLLM version", str(error), f"make a new environment: remove .venv, then {set_up()}")
    except UnsupportedVllmError as error:
        return fail("vLLM version", str(error), set_up())
    named = f"{found.distribution} {found.version}"
    if absent:
        detail = f"{named} is half installed: {absent[0]} is missing ({len(absent)} files are)"
        remedy = f"pip install --force-reinstall --no-deps {found.distribution}=={found.version}"
        return fail("vLLM version", detail, remedy)
    if not found.tested:
        detail = f"{named} is untested: newer than the supported {SUPPORTED_VLLM}"
        return warn("vLLM version", detail, f'pip install "{found.distribution}{SUPPORTED_VLLM}"')
    return ok("vLLM version", f"{named} (supported: {SUPPORTED_VLLM})")


def _absent_files(vllm: InstalledVllm) -> list[str]:
    """Files that vLLM's distribution lists and the environment has not; an editable install lists none of vLLM's."""
    distribution = importlib.metadata.distribution(vllm.distribution)
    listed = (file for file in distribution.files or () if file.parts[0] == "vllm" and file.suffix in (".py", ".so"))
    return [str(file) for file in listed if not Path(str(distribution.locate_file(file))).exists()]


def _check_installed(name: str) -> Check:
    try:
        return ok(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return fail(name, "not installed", set_up())


def check_media_libraries() -> list[Check]:
    """Find torchaudio and torchcodec builds that cannot be imported.

    vLLM and transformers use them if they are there, and do not expect the OSError that a CUDA build raises beside a
    CPU torch. Neither is needed for video.
    """
    return [_check_absent_or_importable(name) for name in ("torchaudio", "torchcodec")]


def _check_absent_or_importable(name: str) -> Check:
    if importlib.util.find_spec(name) is None:
        return ok(name, "absent, and not needed")
    result = _run([sys.executable, "-c", f"import {name}"])
    if result.returncode == 0:
        return ok(name, f"{importlib.metadata.version(name)}, importable")
    line = _last_line(result.stderr)
    return fail(name, f"installed, but its import fails: {line}", f"pip uninstall -y {name}", cause=_message(line))


def check_startup() -> list[Check]:
    """See whether the start-up file of patches/startup.py ran in this very process."""
    if os.environ.get("VLLM_PRUNE_STARTUP") == "0":
        return [fail("start-up file", "switched off by VLLM_PRUNE_STARTUP=0", "unset VLLM_PRUNE_STARTUP")]
    if "vllm_prune.patches.startup" not in sys.modules:
        remedy = "reinstall vllm-prune with pip (a copy on PYTHONPATH is not enough)"
        return [fail("start-up file", "vllm_prune.pth did not run at interpreter start", remedy)]
    return [ok("start-up file", "vllm_prune.pth ran")]


def check_vllm_command() -> list[Check]:
    """Start the `vllm` command of this environment."""
    command = Path(sys.executable).with_name("vllm")
    if not command.exists():
        return [fail("vllm command", f"{command} does not exist", set_up())]
    result = _run([str(command), "--version"])
    if result.returncode == 0:
        return [ok("vllm command", f"starts: {_last_line(result.stdout)}")]
    line = _last_line(result.stderr)
    return [fail("vllm command", line, "mend the failures above; then `vllm --version` starts", cause=_message(line))]


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {_TIMEOUT_S} s")


def _last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1] if lines else "(no output)"


def _message(line: str) -> str:
    """The last line of a traceback without the name of its error.

    >>> _message("OSError: no such file: x")
    'no such file: x'
    """
    return line.partition(": ")[2]
