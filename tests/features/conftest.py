"""A pooling engine of each family, and a server of features, shared by all tests in this folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "dense"))
sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
sys.path.insert(0, str(Path(__file__).parents[1] / "families"))

from dense_cases import Oracle
from dense_engine import RemoteEngine, forgetful
from feature_engine import SERVED, FeatureEngine, selectors_of
from oracle import load_model
from oracle.micro_model import load_by_place, write_micro_model
from serving_server import OPTIONS, Server

FAMILIES = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=pytest.mark.long if name != "qwen2_5_vl" else ()) for name in FAMILIES],
)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, family: str) -> str:
    return str(write_micro_model(tmp_path_factory.mktemp(family) / "micro", family=family))


@pytest.fixture(scope="session")
def started(model: str, family: str) -> Iterator[RemoteEngine]:
    selector, served = selectors_of(model, family), SERVED.get(family, "default")
    with RemoteEngine(model, served, kind=FeatureEngine, selector=selector) as engine:
        yield engine


@pytest.fixture
def engine(started: RemoteEngine) -> Iterator[RemoteEngine]:
    with forgetful(started) as engine:
        yield engine


@pytest.fixture(scope="session")
def oracle(model: str, family: str) -> Oracle:
    from transformers import AutoProcessor

    selectors = load_by_place(selectors_of(model, family))
    return Oracle(load_model(model), AutoProcessor.from_pretrained(model), SERVED.get(family, "default"), selectors)


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For every test here."""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`vllm-prune serve --runner pooling` with the embedded model."""
    folder = tmp_path_factory.mktemp("features server")
    options = (*OPTIONS, "--runner", "pooling", "--prune-features", "0,-1")
    with Server("embedded", folder, prune="stage1_only", override="any", options=options) as running:
        yield running
