"""docs/limits.md against the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vllm_prune.config import checks, frames, image
from vllm_prune.methods import _checks, create, dpp, merge_dropped
from vllm_prune.trace_limits import TraceLimits

DOCS = (Path(__file__).parents[1] / "docs" / "limits.md").read_text()


def rows() -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in DOCS.splitlines() if line.startswith("| ")][1:]


def test_every_constant_is_listed_with_its_value():
    where = {"methods/_checks.py": _checks, "methods/dpp.py": dpp, "methods/merge_dropped.py": merge_dropped}
    where |= {"config/image.py": image, "config/frames.py": frames}
    listed = set()
    for _, limit, constant in rows():
        if constant:
            name, *module = re.findall(r"`([^`]+)`", constant)
            assert re.match(r"\d+", limit).group() == str(getattr(where[module[0]] if module else checks, name)), name
            listed.add(name)
    assert listed >= {name for name in vars(checks) if name.startswith("MAX_")}


@pytest.mark.parametrize(("method", "field"), [("random", "seed"), ("dart", "pivots"), ("dpp", "rank")])
def test_limits_of_parameters(method, field):
    (limit,) = (int(row[1]) for row in rows() if row[0] == f"`{method}`: `{field}`")
    create(method, **{field: limit})
    with pytest.raises(ValueError, match=f"{field}={limit + 1}"):
        create(method, **{field: limit + 1})


def test_limits_of_traces():
    assert f"`--prune-trace-files` ({TraceLimits.files}) and `--prune-trace-bytes` ({TraceLimits.bytes})" in DOCS
