"""Run the checks that import vLLM, in a process of their own: `python -m vllm_prune.cli.checks.probe FILE`."""

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from vllm_prune.cli.checks.alone import alone
from vllm_prune.cli.checks.check import Check, Status, fail
from vllm_prune.cli.checks.machine import check_device, check_memory
from vllm_prune.cli.checks.patching import check_patches
from vllm_prune.cli.checks.plugin import check_plugin
from vllm_prune.cli.checks.remedies import BROKEN

_TIMEOUT_S = 300
# The plugin first: registering it applies the patches.
_CHECKS = {"plugin": check_plugin, "patches": check_patches, "device": check_device, "memory": check_memory}


def check_inside_vllm() -> list[Check]:
    """Start the probe and read what it found."""
    with tempfile.TemporaryDirectory(prefix="vllm-prune-") as folder:
        results = Path(folder, "checks.json")
        command = [sys.executable, "-m", "vllm_prune.cli.checks.probe", str(results)]
        try:
            subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
        except subprocess.TimeoutExpired:
            return [fail("import of vLLM", f"no end within {_TIMEOUT_S} s", "see why `import vllm` hangs")]
        except subprocess.CalledProcessError as error:
            return [fail("import of vLLM", error.stderr.strip()[-500:], BROKEN)]
        return [Check(**found | {"status": Status(found["status"])}) for found in json.loads(results.read_text())]


def _run_checks() -> list[Check]:
    return [found for name, check in _CHECKS.items() for found in alone(name, check)]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps([dataclasses.asdict(check) for check in _run_checks()]))
