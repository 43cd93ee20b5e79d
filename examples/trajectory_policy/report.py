"""Writes what was measured: figures, a page with the command and the machine, and a picture beside it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_prune.bench.throughput.provenance import describe_lines


def as_table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first row is the head, numbers stand to the right of the first column."""
    head, *rest = rows
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rest))


def write_report(folder: Path, name: str, parts: Sequence[str], figures: dict[str, Any], place: dict[str, Any]) -> None:
    """`name`.json and `name`.md in `folder`; `parts` are the page's paragraphs, the title first.

    Args:
        place: What `describe` said before the measurement.
    """
    command = " ".join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(
        json.dumps({"command": command, **figures, "provenance": place}, indent=1) + "\n"
    )
    machine = "\n".join(f"- {line}" for line in describe_lines(place))
    title, *rest = parts
    page = [f"# {title}", f"`{command}`", *rest, f"![{title}]({name}.png)", machine]
    (folder / f"{name}.md").write_text("\n\n".join(page) + "\n")
