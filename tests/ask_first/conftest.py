"""A server on which the question chooses before the first layer, with what a dense prefix excludes turned on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "dense"))

import numpy as np
from adapters import write_adapter
from allowed import EVERYTHING, LEARNED
from dense_cases import Case, Oracle, random_case
from dense_engine import RemoteEngine, forgetful
from oracle import load_model
from oracle.micro_model import load_by_place, micro_selector, write_micro_model
from transformers import AutoProcessor


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_micro_model(tmp_path_factory.mktemp("ask_first") / "micro"))


@pytest.fixture(scope="session")
def selector(micro: str) -> str:
    return micro_selector(micro)


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For every test here."""


@pytest.fixture(scope="session")
def oracle(micro: str, selector: str) -> Oracle:
    return Oracle(load_model(micro), AutoProcessor.from_pretrained(micro), LEARNED, load_by_place([selector]))


@pytest.fixture(scope="session")
def adapters(oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("adapters")
    return [write_adapter(folder / str(seed), oracle.model, seed) for seed in (1, 2)]


@pytest.fixture(scope="session")
def importable() -> Iterator[None]:
    """Lets engines' processes import from this folder."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, [before])])
    yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="session")
def started(micro: str, selector: str, importable: None) -> Iterator[RemoteEngine]:
    with RemoteEngine(micro, LEARNED, override="tighten", selector=selector, **EVERYTHING) as engine:
        yield engine


@pytest.fixture
def engine(started: RemoteEngine) -> Iterator[RemoteEngine]:
    started.call("forget", connector=True)
    with forgetful(started) as engine:
        yield engine


@pytest.fixture(scope="session")
def cases() -> list[Case]:
    """At random, all under the server's own configuration."""
    random = np.random.default_rng(5)
    return [random_case(random, [None]) for _ in range(12)]
