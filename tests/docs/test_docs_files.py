"""Files that other programs read: against their schemas, and what they name is there."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vllm_prune.config import PRESETS

pytest.importorskip("check_jsonschema", reason="the extra `test` is not installed")
ROOT = Path(__file__).parents[2]
FORMS = ROOT / ".github" / "ISSUE_TEMPLATE"
COMPOSE = ROOT / "launch" / "docker" / "compose.yaml"


def validate(schema: str, *files: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("compose-spec", [COMPOSE]),
        ("github-issue-config", [FORMS / "config.yml"]),
        ("github-issue-forms", [FORMS / "fault.yml", FORMS / "method.yml"]),
        ("citation-file-format", [ROOT / "CITATION.cff"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_they_are_what_their_readers_expect(schema: str, files: list[Path], tmp_path: Path) -> None:
    done = validate(schema, *files)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / files[0].name
    wrong.write_text(files[0].read_text() + "\nunknown_key: 1\n")
    assert validate(schema, wrong).returncode != 0


def test_all_forms_are_looked_at() -> None:
    assert sorted(path.name for path in FORMS.iterdir()) == ["config.yml", "fault.yml", "method.yml"]


@pytest.mark.parametrize("service", ["server", "embedded"])
def test_a_service_is_built_from_what_is_there_and_listens_on_this_machine_alone(service: str) -> None:
    found = yaml.safe_load(COMPOSE.read_text())["services"][service]
    context = (COMPOSE.parent / found["build"]["context"]).resolve()
    assert context == ROOT
    assert (context / found["build"]["dockerfile"]).is_file()
    assert found["image"] == f"vllm-prune:{found['build']['dockerfile'].rpartition('.')[2]}"
    assert all(port.startswith("127.0.0.1:") for port in found["ports"])
    command = shlex.split(found["command"])
    assert command[:2] == ["vllm-prune", "serve"]
    assert command[command.index("--prune") + 1].removeprefix("${VLLM_PRUNE_PRESET:-").removesuffix("}") in PRESETS


def test_weights_are_kept_where_the_images_user_may_write() -> None:
    (volume,) = yaml.safe_load(COMPOSE.read_text())["services"]["server"]["volumes"]
    target = volume.partition(":")[2]
    made = next(
        line for line in (COMPOSE.parent / "Dockerfile.cuda").read_text().splitlines() if "--owner=1001" in line
    )
    assert target in made.split()
