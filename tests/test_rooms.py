"""Where a line of `serving/` runs is told by its folder: no process's room imports another's."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vllm_prune

PACKAGE = Path(vllm_prune.__file__).parent
SERVING = "vllm_prune.serving."
PROCESSES = ("api", "core", "worker")
ANYWHERE = {"wire", "combinations", "refusals", "parent_watch"}
"""Rooms and files that belong to no process."""
MAY_IMPORT = {
    "wire": {"wire"},
    "api": {"api"} | ANYWHERE,
    "core": {"core"} | ANYWHERE,
    "worker": {"worker"} | ANYWHERE,
    "ray": {"ray", "wire"},
    "families": {"families", "api", "worker"} | ANYWHERE,
    "config_hook": ANYWHERE,
    "combinations": {"wire"},
    "refusals": {"wire"},
    "parent_watch": set[str](),
    "patches:server": {"api"} | ANYWHERE,
    "patches:core": {"core", "ray"} | ANYWHERE,
    "patches:worker": {"worker"} | ANYWHERE,
    "patches:any": set[str](),
}
LONGEST_FILE, LONGEST_FUNCTION = 250, 60


def files() -> list[Path]:
    found = [
        path for path in (PACKAGE / "serving").rglob("*.py") if path.parent.name != "serving" or path.stem[0] != "_"
    ]
    return sorted(found) + sorted(path for path in (PACKAGE / "patches").glob("*.py") if room_of(path) in MAY_IMPORT)


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return f"patches:{parts[1].split('_')[0]}" if parts[0] == "patches" else parts[1]


def imported_rooms(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name.removeprefix(SERVING).split(".")[0] for name in names if name.startswith(SERVING))


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_the_rooms_that_its_own_may(path):
    assert set(imported_rooms(path)) <= MAY_IMPORT[room_of(path)]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_short(path):
    text = path.read_text()
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert len(text.splitlines()) <= LONGEST_FILE
    assert [f.name for f in functions if f.end_lineno - f.lineno >= LONGEST_FUNCTION] == []


@pytest.mark.parametrize("room", PROCESSES)
def test_a_process_loads_no_other_processs_room(room):
    """Also not by way of what is below: asked of an interpreter that has imported every file of the room."""
    modules = [path.relative_to(PACKAGE.parent).with_suffix("") for path in (PACKAGE / "serving" / room).rglob("*.py")]
    names = [".".join(module.parts).removesuffix(".__init__") for module in modules]
    script = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    loaded = {name.removeprefix(SERVING).split(".")[0] for name in done.stdout.split() if name.startswith(SERVING)}
    assert room in loaded
    assert loaded <= {room} | ANYWHERE


def test_every_room_is_in_the_table():
    rooms = {path.name for path in (PACKAGE / "serving").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms | {path.stem for path in (PACKAGE / "serving").glob("[!_]*.py")} == {
        name for name in MAY_IMPORT if ":" not in name
    }
