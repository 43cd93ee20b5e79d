"""The results as JSON and as a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vllm_prune.bench.throughput.provenance import describe_lines


def save(folder: Path, result: dict[str, Any]) -> None:
    """Writes `clients.json` and `clients.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "clients.json").write_text(json.dumps(result, indent=2) + "\n")
    (folder / "clients.md").write_text(_page(result))


def _page(result: dict[str, Any]) -> str:
    rows = result["rows"]
    titles = list(dict.fromkeys(title for row in rows for title in row))
    lines = [
        "# Clients of others against the embedded model",
        "",
        f"The first question of every sample clip, `--prune {result['prune']}`. Requests, right answers, times and",
        "prompt tokens are what the client reports; video tokens and those kept are what the server counted.",
        "Two requests at a time, on a shared machine: times only show that they are measured.",
        "",
        f"| {' | '.join(titles)} |",
        f"|{'---|' * len(titles)}",
        *(f"| {' | '.join(str(row.get(title, '-')) for title in titles)} |" for row in rows),
        "",
        f"- Command: `{result['command']}`",
        *(f"- {line}" for line in describe_lines(result["provenance"])),
    ]
    return "\n".join(lines) + "\n"
