"""Reports, metrics and failures with two workers and two API servers."""

from __future__ import annotations

import os
import re

import httpx
import openai
import pytest
from serving_cases import QUESTION
from serving_media import data_url, mp4
from serving_plugin import METHOD, wayward, write_plugin
from serving_server import FEW_BLOCKS, OPTIONS, Server, text, video

pytestmark = pytest.mark.long
REQUESTS = 24
ASK = text(QUESTION)


@pytest.fixture(scope="module")
def wide_server(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide server")
    options = (*OPTIONS, *FEW_BLOCKS, "--prune-log", "--tensor-parallel-size", "2", "--api-server-count", "2")
    path = [str(write_plugin(folder / "site")), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
        with Server(model, folder, prune="default", override="any", options=options) as running:
            yield running


def processes_with_requests(server) -> int:
    """How many API servers answered chat completions: what they log has their number."""
    return len(set(re.findall(r"\(ApiServer_(\d+) pid=\d+\).* prune chatcmpl-", server.log())))


def test_counts_are_summed_over_the_processes(wide_server):
    for number in range(REQUESTS):
        with openai.OpenAI(base_url=f"{wide_server.root}/v1", api_key="none", max_retries=0, timeout=120) as client:
            wide_server.client, kept = client, wide_server.client
            try:
                found = wide_server.ask(video(data_url(mp4(16, seed=70 + number % 4))), ASK).prune
            finally:
                wide_server.client = kept
        assert found["video_tokens"] == {"before": 32, "kept": 6, "removed": 1 - 6 / 32, "structure": 0}
        if found["videos"][0]["source"] == "encoded":
            assert found["seconds"]["encoder"] > 0
            assert found["seconds"]["dense_prefix"] > 0
    assert processes_with_requests(wide_server) == 2
    for _ in range(6):  # whichever process answers
        assert wide_server.metric("vllm_prune:requests_total") == REQUESTS
        assert wide_server.metric("vllm_prune:video_tokens_count") == 5 * REQUESTS
        assert wide_server.metric("vllm_prune:videos_total") == REQUESTS


@pytest.mark.parametrize("how", ["raise", "raise on rank 0", "raise on rank 1", "few"])
def test_a_failure_on_one_rank_is_a_failure_on_all(wide_server, how):
    film = video(data_url(mp4(16, seed=80)))
    for _ in range(2):
        with pytest.raises(openai.InternalServerError, match=f"method '{METHOD}' failed"):
            wide_server.ask(film, ASK, prune=wayward(how))
    assert wide_server.ask(film, ASK, prune=wayward()).usage.completion_tokens == 3
    assert wide_server.ask(film, ASK).usage.completion_tokens == 3
    assert httpx.get(f"{wide_server.root}/health").status_code == 200
    assert wide_server.metric("vllm:kv_cache_usage_perc") == 0
