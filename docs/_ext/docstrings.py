"""Docstrings as they are written here, made into reStructuredText."""

import re
from typing import Any

from sphinx.ext.napoleon import Config, GoogleDocstring

_FIELD = re.compile(r"([a-z][a-z_]*): (\S.*)")
_GOOGLE = Config(napoleon_google_docstring=True)


def to_restructured_text(_app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Rewrites `lines` in place: lists of fields (`name: text`) and Google's sections.

    Docstrings of attributes are prose throughout; Google's rules would take what comes before a colon for a type.
    """
    if what in ("attribute", "data", "property"):
        return
    found = GoogleDocstring(_list_fields(lines), _GOOGLE, what=what, name=name, obj=obj, options=options)
    lines[:] = found.lines()


def _list_fields(lines: list[str]) -> list[str]:
    """The lines with each paragraph of fields as a list; what continues a field is indented further than its name."""
    out: list[str] = []
    within = False
    for line in lines:
        field = _FIELD.match(line)
        if field:
            out += [] if within else [""]
            out.append(f"- `{field[1]}`: {field[2]}")
        elif within and line.startswith("    "):
            out.append("  " + line.strip())
            continue
        else:
            out += ["", line] if within else [line]
        within = field is not None
    return out
