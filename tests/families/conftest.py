"""What the tests of model families share."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

for folder in ("", "dense", "pixels"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))


@pytest.fixture(scope="module")
def alone():
    """A process without a group for tensor parallelism."""
    from vllm.distributed import parallel_state

    with mock.patch.object(parallel_state, "_TP", SimpleNamespace(world_size=1, rank_in_group=0)):
        yield
