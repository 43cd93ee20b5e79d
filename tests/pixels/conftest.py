"""One engine in a process of its own, and the oracle, shared by all tests in this folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "dense"))

from dense_cases import Oracle
from dense_engine import RemoteEngine, forgetful
from oracle import load_model
from oracle.micro_model import write_micro_model


@pytest.fixture(scope="session")
def pixel_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_micro_model(tmp_path_factory.mktemp("pixels") / "micro"))


@pytest.fixture(scope="session")
def pixel_oracle(pixel_model: str) -> Oracle:
    from transformers import AutoProcessor

    return Oracle(load_model(pixel_model), AutoProcessor.from_pretrained(pixel_model), "baseline")


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For every test here."""


@pytest.fixture(scope="session")
def started_engine(pixel_model: str) -> Iterator[RemoteEngine]:
    with RemoteEngine(pixel_model, "baseline", enable_mm_embeds=True) as engine:
        yield engine


@pytest.fixture
def engine(started_engine: RemoteEngine) -> Iterator[RemoteEngine]:
    with forgetful(started_engine) as engine:
        yield engine
