"""Tensor parallelism over two Ray actors: the oracle's answers, one rank's answers, and the same tokens on both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from dense_cases import CONFIGS, LOGPROB_TOLERANCE, VIDEO, Case, Oracle, chat, compare, random_case, video
from dense_engine import RemoteEngine, RemoteError
from oracle import load_model
from oracle.micro_model import micro_selector, write_micro_model
from rank_functions import actor_and_process, keep_own_rank, keep_the_same
from ray_head import RayNode

from vllm_prune.config import PRESETS

SERVER_CONFIG = "default"
METHODS: tuple[Any, ...] = (
    {"method": "uniform", "stage1": None, "keep_ratio": 0.3},
    {"method": "vidcom2", "stage1": None, "keep_ratio": 0.3},
    {"method": "dpp", "keep_ratio": 0.3},
    {"preset": "default", "params": {"selector": "dpp"}},
    {"preset": "default", "params": {"quota": "segment", "heads": "mean"}},
)


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_micro_model(tmp_path_factory.mktemp("ray") / "micro"))


@pytest.fixture(scope="session")
def oracle(micro: str) -> Oracle:
    from transformers import AutoProcessor

    return Oracle(load_model(micro), AutoProcessor.from_pretrained(micro), SERVER_CONFIG)


@pytest.fixture(scope="session")
def on_ray(micro: str, ray_head: RayNode) -> Iterator[RemoteEngine]:
    environment = {**ray_head.environment, "VLLM_PRUNE_CHECK_RANKS": "1"}
    options = {"tensor_parallel_size": 2, "distributed_executor_backend": "ray"}
    with RemoteEngine(micro, SERVER_CONFIG, environment, selector=micro_selector(micro), **options) as engine:
        engine.call("watch_ranks")
        yield engine


@pytest.fixture(scope="session")
def on_one_rank(micro: str) -> Iterator[RemoteEngine]:
    with RemoteEngine(micro, SERVER_CONFIG, selector=micro_selector(micro)) as engine:
        yield engine


def one_video(config: Any, seed: int = 1) -> Case:
    return Case(chat(f"{VIDEO}What colour is the flash?"), (video(seed),), config=config)


def cases(seed: int) -> list[Case]:
    random = np.random.default_rng(seed)
    return [random_case(random, [config]) for config in CONFIGS]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long)])
def test_the_answers_are_the_oracles_and_the_tokens_the_same_on_both_ranks(on_ray, oracle, seed):
    batch = cases(seed)
    on_ray.call("forget")
    drops = on_ray.call("rank_digests")[0][0]
    answers = on_ray.run([case.prompt() for case in batch])
    compare(batch, answers, oracle)
    first, second = on_ray.call("rank_digests")
    assert first == second
    assert first[0] > drops


def test_every_preset_and_method_answers_as_one_rank_does(on_ray, on_one_rank):
    prompts = [one_video(config).prompt() for config in (*PRESETS, *METHODS)]
    for mine, theirs in zip(on_ray.run(prompts), on_one_rank.run(prompts), strict=True):
        assert not mine.error
        assert mine.prompt == theirs.prompt
        assert mine.token_ids == theirs.token_ids
        assert np.abs(mine.logprobs - theirs.logprobs).max() < LOGPROB_TOLERANCE
        assert [chosen["kept"].tolist() for chosen in mine.chosen] == [c["kept"].tolist() for c in theirs.chosen]


def test_the_ranks_are_actors_of_the_cluster(on_ray):
    actors = on_ray.call("on_ranks", actor_and_process)
    assert len({actor for actor, _ in actors}) == 2
    assert len({process for _, process in actors}) == 2


def test_ranks_that_keep_different_tokens_are_found(on_ray):
    on_ray.call("on_ranks", keep_the_same)
    with pytest.raises(RemoteError, match=r"choice behind layer 3: .* keep different tokens \(rank 0: 2 tokens"):
        on_ray.call("on_ranks", keep_own_rank)


def test_the_servers_thread_count_reaches_the_workers(monkeypatch):
    from vllm_prune.serving.ray.on_cpu import with_threads

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert with_threads({}) == {}
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert with_threads({"pip": ["x"]}) == {"pip": ["x"], "env_vars": {"OMP_NUM_THREADS": "4"}}
    assert with_threads({"env_vars": {"OMP_NUM_THREADS": "2"}}) == {"env_vars": {"OMP_NUM_THREADS": "2"}}
