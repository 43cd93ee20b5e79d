"""Commands as the documentation prints them: our own parsers take them, and what they name is there."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_prune.cli.bench import BENCHMARKS
from vllm_prune.cli.main import COMMANDS, make_parser

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*/README.md")])
FOLDERS = ("tests/", "examples/", "launch/", "vllm_prune/", "docs/", "benchmarks/")
_SHELL = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
_TOGETHER = {"&&", "||", "|", ";"}


def commands(page: Path) -> Iterator[list[str]]:
    """The programs with their arguments, without variables that are set for one."""
    for block in _SHELL.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(re.sub(r" \[.*?\](?= |$)", "", line), comments=True)
            while words:
                end = next((at for at, word in enumerate(words) if word in _TOGETHER), len(words))
                command, words = words[:end], words[end + 1 :]
                while command and re.match(r"\w+=", command[0]):
                    command = command[1:]
                if command:
                    yield command


def every(*programs: str) -> list[Any]:
    """Commands of these programs, or of all, as parameters of a test; without those with a shell's variables."""
    return [
        pytest.param(command, id=f"{page.relative_to(ROOT)}: {' '.join(command)[:60]}")
        for page in PAGES
        for command in commands(page)
        if not programs or Path(command[0]).name in programs
        if not any(word.startswith("$") for word in command)
    ]


def parser_of(arguments: list[str]) -> tuple[argparse.ArgumentParser, list[str], bool]:
    """The parser of a command's or a benchmark's arguments, these, and whether the rest is vLLM's."""
    name, rest = arguments[0], arguments[1:]
    if name != "bench":
        return make_parser(name)[0], rest, COMMANDS[name].passes_on
    parser = argparse.ArgumentParser()
    importlib.import_module(BENCHMARKS[rest[0]].module).add_arguments(parser)
    return parser, rest[1:], False


@pytest.mark.parametrize("command", every("vllm-prune"))
def test_the_parsers_take_it(command: list[str]) -> None:
    parser, arguments, passes_on = parser_of(command[1:])
    (parser.parse_known_args if passes_on else parser.parse_args)(arguments)


@pytest.mark.parametrize("command", every())
def test_what_it_names_is_there(command: list[str]) -> None:
    outputs = {"-o", "--output", "--environments", "--out"}
    named = [word for before, word in zip(["", *command], command, strict=False) if before not in outputs]
    for word in named:
        path = word.removeprefix("./").partition("::")[0]
        if path.startswith(FOLDERS) and not re.search(r"[A-Z]{4}|[*{]", path):
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize("command", every("python", "pytest", "pre-commit", "ruff", "mypy"))
def test_a_checkouts_program_is_that_of_its_environment(command: list[str]) -> None:
    """Which nobody has to activate: what is on the PATH is another Python, or none."""
    if command[1:3] != ["-m", "lmms_eval"]:  # which has an environment of its own
        assert command[0].startswith(".venv/bin/"), command


def test_a_server_with_the_page_lets_it_compare() -> None:
    with_page = [c for page in PAGES for c in commands(page) if "serve" in c and "--prune-page" in c]
    assert with_page
    for command in [*with_page, (ROOT / "launch/docker/compose.yaml").read_text().partition("--prune-page")[2].split()]:
        assert command[command.index("--prune-override") + 1] == "any"
