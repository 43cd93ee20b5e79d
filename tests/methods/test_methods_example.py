"""The example of docs/add-method.md passes the contract tests that the page names, by the command that it names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "examples" / "third_party_method"
PIP_INSTALL = ("pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation")
COMMAND = "pytest tests/methods/test_methods_contract.py -k largest_norm"


def test_the_example_passes_the_contract(tmp_path: Path) -> None:
    assert COMMAND in (REPOSITORY / "docs" / "add-method.md").read_text()
    subprocess.run([sys.executable, "-m", *PIP_INSTALL, "--target", tmp_path, EXAMPLE], check=True, timeout=120)
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", *COMMAND.split(), "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=300
    )
    # pytest's status is 5 where -k selects nothing.
    assert done.returncode == 0, done.stdout[-3000:]
