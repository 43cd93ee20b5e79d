"""A result file that is there whole, or as it was before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Writes `document` to `path`, replacing an earlier one in one step."""
    partial = path.with_suffix(".json.part")
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def rounded(value: Any) -> Any:
    """Floating-point numbers, also inside dicts, with six decimals: more than any measurement here is worth."""
    if isinstance(value, float):
        return round(value, 6)
    return {key: rounded(entry) for key, entry in value.items()} if isinstance(value, dict) else value
