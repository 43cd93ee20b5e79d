"""The list of everything measured: each file of benchmarks/results/ with the command that made it."""

import json
import shlex
from pathlib import Path
from typing import Any

_RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def results_table() -> str:
    """A Markdown list of the results, by title.

    Raises:
        ValueError: A result does not say by which command it was made.
    """
    return "\n".join(sorted(_entry(file) for file in _RESULTS.glob("*.json")))


def _entry(file: Path) -> str:
    command = json.loads(file.read_text()).get("command")
    if not command:
        raise ValueError(f"{file.name}: has no command; every result names the one that made it")
    page = file.with_suffix(".md")
    title = page.read_text().splitlines()[0].lstrip("# ") if page.is_file() else "Figures only"
    shown = page.name if page.is_file() else file.name
    return f"- [{title}: `{file.stem}`](../benchmarks/results/{shown})\n\n  ```\n  {_as_typed(command)}\n  ```\n"


def _as_typed(command: Any) -> str:
    typed = command if isinstance(command, str) else shlex.join(command)
    return typed.removeprefix(".venv/bin/")
