"""Engines in processes of their own and the oracle, shared by all tests in this folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from dense_cases import Oracle
from dense_engine import DENSE_TOKENS, RemoteEngine, forgetful
from oracle import load_model
from oracle.micro_model import load_by_place, micro_selectors, write_micro_model

SERVER_CONFIG = "default"
COMPILED_BLOCKS = 34


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_micro_model(tmp_path_factory.mktemp("dense") / "micro"))


@pytest.fixture(scope="session")
def oracle(micro: str) -> Oracle:
    from transformers import AutoProcessor

    selectors = load_by_place(micro_selectors(micro))
    return Oracle(load_model(micro), AutoProcessor.from_pretrained(micro), SERVER_CONFIG, selectors)


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For every test here."""


@pytest.fixture(scope="session")
def shared_eager(micro: str) -> Iterator[RemoteEngine]:
    options = {"enable_prompt_embeds": True, "selector": micro_selectors(micro), "dense_tokens": DENSE_TOKENS}
    with RemoteEngine(micro, SERVER_CONFIG, **options) as engine:
        yield engine


@pytest.fixture(scope="session")
def compiled(micro: str) -> Iterator[RemoteEngine]:
    """Compiled, with a KV cache for little more than the longest request."""
    options = {"enforce_eager": False, "num_gpu_blocks_override": COMPILED_BLOCKS, "selector": micro_selectors(micro)}
    with RemoteEngine(micro, SERVER_CONFIG, **options) as engine:
        yield engine


@pytest.fixture(scope="session")
def two_ranks(micro: str) -> Iterator[RemoteEngine]:
    """Tensor parallelism over two processes."""
    bind = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    options = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp", "selector": micro_selectors(micro)}
    with RemoteEngine(micro, SERVER_CONFIG, bind, **options) as engine:
        engine.call("watch_ranks")
        yield engine


@pytest.fixture
def eager(shared_eager: RemoteEngine) -> Iterator[RemoteEngine]:
    with forgetful(shared_eager) as engine:
        yield engine
