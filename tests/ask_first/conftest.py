"""A server on which the question chooses before the first layer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from oracle.micro_model import write_micro_model, write_micro_selector


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_micro_model(tmp_path_factory.mktemp("ask_first") / "micro"))


@pytest.fixture(scope="session")
def selector(micro: str) -> str:
    return str(write_micro_selector(Path(micro)))
