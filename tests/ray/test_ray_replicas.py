"""Replicas on Ray Serve: a video stays with the replica that has seen it, and a killed replica loses no request."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from vllm_prune.cluster.affinity import media_key
from vllm_prune.cluster.replicas import ReplicaOptions

REQUESTS, VIDEOS, CLIENTS = 30, 6, 2
METRICS_S = 4  # longer than Ray takes to pass counters on


@pytest.fixture(scope="module")
def replicas():
    ray_replicas = pytest.importorskip("benchmarks.ray_replicas", reason="needs the repository's benchmarks/")
    with ray_replicas.Cluster(2) as cluster:
        yield ray_replicas, cluster


def ask_all(ray_replicas, cluster, outcomes):
    ray_replicas.run(cluster, list(ray_replicas.workload(REQUESTS, VIDEOS)), CLIENTS, outcomes)


@pytest.mark.long
def test_a_video_is_encoded_by_one_replica_and_its_blocks_are_reused(replicas):
    ray_replicas, cluster = replicas
    assert len(cluster.replica_processes()) == 2
    outcomes = []
    ask_all(ray_replicas, cluster, outcomes)
    assert [outcome.text for outcome in outcomes if outcome.status != 200] == []
    counted = sum(cluster.counters(REQUESTS).values(), ray_replicas.Counter())
    assert counted["request_success"] == REQUESTS
    assert counted["mm_cache_queries"] == REQUESTS
    assert counted["mm_cache_hits"] == REQUESTS - VIDEOS  # with one replica it could not be more
    by_video = [[outcome.cached_tokens for outcome in outcomes if outcome.video == video] for video in range(VIDEOS)]
    assert all(cached for of_one in by_video for cached in sorted(of_one)[1:])  # all but the first


@pytest.mark.long
def test_a_killed_replica_loses_no_request(replicas):
    ray_replicas, cluster = replicas
    outcomes = []
    with ray_replicas.killed_after(cluster, cluster.replica_processes()[0], outcomes, REQUESTS // 3):
        ask_all(ray_replicas, cluster, outcomes)
    assert len(outcomes) == REQUESTS
    failed = [outcome for outcome in outcomes if outcome.status != 200]
    assert len(failed) <= CLIENTS
    assert all(outcome.status >= 500 and "error" in outcome.text for outcome in failed)


@pytest.mark.long
def test_a_request_that_two_replicas_died_of_is_told_so(replicas):
    ray_replicas, cluster = replicas
    wait_for(lambda: number_that_answer(ray_replicas, cluster) == 2)
    left = cluster.replica_processes()  # not those that are started in the place of dead ones
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(cluster.ask, 0, "who?", 120, max_completion_tokens=3000, ignore_eos=True)
        while left:
            process = computing(left, asked)
            process.kill()
            left.remove(process)
        outcome = asked.result()
    assert outcome.status == 503
    assert "2 replicas ended while they worked on this request; send it again later" in outcome.text


def number_that_answer(ray_replicas, cluster):
    """How many replicas took part in answering."""
    before = cluster.counters(0)
    ask_all(ray_replicas, cluster, [])
    time.sleep(METRICS_S)
    now = cluster.counters(0)
    return sum(now[one]["request_success"] > before.get(one, {}).get("request_success", 0) for one in now)


def computing(processes, asked):
    """The one that works on the only request."""
    while not asked.done():
        for process in filter(busy, processes):
            return process
    pytest.fail(f"it is answered: {asked.result()}")


def busy(process, seconds=1.0):
    """Whether a replica computes, in its own process or in a child."""
    with contextlib.suppress(psutil.NoSuchProcess):
        before = cpu_seconds(process)
        time.sleep(seconds)
        return cpu_seconds(process) - before > 0.5 * seconds
    return False


def cpu_seconds(process):
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True)))


def wait_for(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(1)


@pytest.mark.long
def test_the_number_of_replicas_follows_the_load_and_sigterm_ends_them():
    ray_replicas = pytest.importorskip("benchmarks.ray_replicas", reason="needs the repository's benchmarks/")
    with ray_replicas.Cluster(1, most=2, options=["--target-requests", "1"]) as cluster, ThreadPoolExecutor(4) as pool:
        assert len(cluster.replica_processes()) == 1
        outcomes = []

        def keep_asking(video):
            deadline = time.monotonic() + 300
            while len(cluster.replica_processes()) == 1 and time.monotonic() < deadline:
                outcomes.append(cluster.ask(video, "who?", max_completion_tokens=200, ignore_eos=True))

        for asking in [pool.submit(keep_asking, video) for video in range(4)]:
            asking.result()
        assert len(cluster.replica_processes()) == 2
        assert {outcome.status for outcome in outcomes} == {200}
        cluster.server.terminate()
        assert cluster.server.wait(60) == 0
        assert "replicas: ending them" in cluster.log.read_text()
        wait_for(lambda: not cluster.replica_processes(), seconds=30)


# --- the key of a request ---


def chat(*parts):
    return {"messages": [{"role": "user", "content": list(parts)}]}


def video(url, **others):
    return {"type": "video_url", "video_url": {"url": url}, **others}


def image(url):
    return {"type": "image_url", "image_url": {"url": url}}


def words(text):
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (chat(words("Who?"), video("a")), chat(video("a"), words("Why?"))),
        (chat(image("i"), video("a")), chat(video("a"))),
        (chat(video("a"), video("b")), chat(video("a"))),
        (chat(video("a", uuid="x")), chat(video("b", uuid="x"))),
    ],
)
def test_requests_that_share_a_key(one, other):
    assert media_key(one) == media_key(other)
    assert media_key(one)


@pytest.mark.parametrize(("one", "other"), [(chat(video("a")), chat(video("b"))), (chat(image("a")), chat(image("b")))])
def test_requests_that_do_not(one, other):
    assert media_key(one) != media_key(other)


@pytest.mark.parametrize(
    "body",
    [None, [], {}, {"messages": 3}, {"messages": [3, {"content": "x"}]}, chat(words("x")), chat({"video_url": 3}, 4)],
)
def test_requests_without_a_medium_have_no_key(body):
    assert media_key(body) is None


# --- options ---


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "model: missing"),
        ({"model": "m", "replicas": 2}, "unknown option 'replicas'; known: model, name"),
        ({"model": "m", "min_replicas": 0}, "min_replicas=0: must be 1 or more"),
        ({"model": "m", "min_replicas": 3}, "max_replicas=2: must be min_replicas=3 or more"),
        ({"model": "m", "max_requests": 4}, "max_requests=4: must be target_requests=16 or more"),
        ({"model": "m", "prune": {"keep_ratio": 7}}, "keep_ratio=7"),
    ],
)
def test_wrong_options_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        ReplicaOptions.parse(given)
