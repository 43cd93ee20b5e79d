"""What the tests of model families share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING
from unittest import mock

import pytest

if TYPE_CHECKING:
    from dense_engine import RemoteEngine

for folder in ("", "dense", "pixels"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))


ALWAYS = ("random_requests", "questions_before", "everything_is_stock", "history", "hybrid_refuses", "frames")
"""Of the tests of a hybrid, those that are not long, each with its first cases."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        short = params.get("start", 0) == 0 and any(name in item.name for name in ALWAYS)
        if params.get("family") == "qwen3_5" and not short:
            item.add_marker(pytest.mark.long)
        if params.get("family") == "qwen3_vl_moe" and "selectors_inside" in item.name:
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="module")
def alone():
    """A process without a group for tensor parallelism."""
    from vllm.distributed import parallel_state

    with mock.patch.object(parallel_state, "_TP", SimpleNamespace(world_size=1, rank_in_group=0)):
        yield


@pytest.fixture
def engine(started: RemoteEngine) -> Iterator[RemoteEngine]:
    """The one that the tests of a file have started, which knows nothing of the test before."""
    from dense_engine import forgetful

    with forgetful(started) as engine:
        yield engine
