"""A third-party package with a method that misbehaves in every way it is asked to, found by its entry point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

METHOD = "wayward"

_MODULE = '''
import dataclasses
from pathlib import Path

import torch

from vllm_prune.methods.base import Assignment


@dataclasses.dataclass(frozen=True)
class Wayward:
    """Keeps the first tokens, unless `how` says otherwise."""

    how: str = "good"
    unless: str = ""

    name = "wayward"

    def assign(self, tokens, budget):
        n = tokens.num_tokens
        if self.unless and Path(self.unless).exists():
            return Assignment.from_kept(torch.arange(budget), n)
        if self.how == "raise" or self.how == f"raise on rank {torch.distributed.get_rank()}":
            raise ArithmeticError("the moon is in the wrong place")
        if self.how == "list":
            return list(range(budget))
        kept = {"few": budget - 1, "many": budget + 1}.get(self.how, budget)
        assignment = Assignment.from_kept(torch.arange(kept), n)
        if self.how == "lost":
            return Assignment(assignment.slot + n, assignment.anchor)
        return assignment
'''


def write_plugin(folder: Path) -> Path:
    """Installs the package into `folder`, which has to be on the path."""
    info = folder / "wayward-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wayward\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[vllm_prune.methods]\n{METHOD} = wayward_methods:Wayward\n")
    (folder / "wayward_methods.py").write_text(_MODULE)
    return folder


def wayward(how: str = "good", **params: Any) -> dict[str, Any]:
    """A request's configuration."""
    return {"method": METHOD, "keep_ratio": 0.25, "params": {"how": how, **params}}
