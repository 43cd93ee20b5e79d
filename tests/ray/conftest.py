"""One Ray head with two CPUs for all tests in this folder that need no other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
sys.path.insert(0, str(Path(__file__).parents[1] / "dense"))

if TYPE_CHECKING:
    from ray_head import RayNode


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayNode]:
    from ray_head import RayNode  # not above: it skips the module that imports it where Ray is not installed

    with RayNode(num_cpus=2) as node:
        yield node
