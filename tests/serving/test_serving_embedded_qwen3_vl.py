"""The embedded Qwen3-VL behind `vllm-prune serve`: it answers, also from pruned videos."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from serving_samples import share_right
from serving_server import Server

pytestmark = pytest.mark.long
OPTIONS = ("--host", "127.0.0.1", "--enforce-eager", "--gpu-memory-utilization", "0.1", "--max-num-seqs", "16")


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("second")
    with Server("embedded-qwen3-vl", folder, prune="ask_first", override="any", options=OPTIONS) as running:
        yield running


@pytest.mark.parametrize(
    ("prune", "least_right", "kept"),
    [
        ("baseline", 0.93, 1.0),
        (None, 0.88, 0.2),
        ("default", 0.88, 0.2),
        ({"method": "dpp", "keep_ratio": 0.25}, 0.88, 0.25),
    ],
    ids=["unpruned", "its selector", "attention", "dpp"],
)
def test_answers(second: Server, prune: object, least_right: float, kept: float):
    right, share = share_right(second, prune)
    assert share == pytest.approx(kept, abs=0.01)
    assert right >= least_right
