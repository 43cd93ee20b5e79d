"""The built-in methods, as the registry has them and their own docstrings tell."""

import importlib
import inspect
import re
from typing import Any

from vllm_prune.methods import registry

_PAPER = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def methods_table() -> str:
    """A Markdown table: every built-in method, what its module says of itself, its paper and its class."""
    rows = ["| method | what it is | paper | class |", "| --- | --- | --- | --- |"]
    for name, kind in _built_in():
        says = _first_paragraph(kind.__module__)
        paper = _PAPER.search(says)
        link = f"[arXiv:{paper[1]}](https://arxiv.org/abs/{paper[1]})" if paper else "none"
        rows.append(f"| `{name}` | {says} | {link} | {{py:class}}`~{kind.__module__}.{kind.__qualname__}` |")
    return "\n".join(rows)


def methods_reference() -> str:
    """Markdown: the reference of every built-in method's module."""
    modules = [f".. automodule:: {kind.__module__}" for _, kind in _built_in()]
    return "\n".join(["```{eval-rst}", *modules, "```"])


def _built_in() -> list[tuple[str, Any]]:
    return [(name, registry.load(name)) for name in registry.names() if registry.is_built_in(name)]


def _first_paragraph(module: str) -> str:
    text = inspect.getdoc(importlib.import_module(module)) or ""
    return " ".join(text.split("\n\n")[0].split())
