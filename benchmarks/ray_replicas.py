"""Two replicas on Ray Serve beside one: hit rates of the caches, and what happens when a replica is killed.

    python -m benchmarks.ray_replicas --requests 200 --videos 20 -o benchmarks/results

Starts a Ray cluster of its own on this machine's loopback with launch/ray/, serves the embedded model, asks, and stops
everything again. Each video is asked about in turn, so that a video comes back only after all the others.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.ending import exit_from
from benchmarks.ray_replicas_cluster import PRUNE, Cluster, Outcome
from vllm_prune.bench.needs import require
from vllm_prune.bench.throughput.errors import BenchmarkError
from vllm_prune.bench.throughput.provenance import describe, describe_lines
from vllm_prune.embedded import clips


def workload(requests: int, videos: int) -> Iterator[tuple[int, str]]:
    """Video and question of each request; the videos take turns, and so do a video's questions."""
    for number in range(requests):
        video = number % videos
        questions = clips()[video % len(clips())].questions
        yield video, questions[(number // videos) % len(questions)].question


@contextmanager
def killed_after(cluster: Cluster, process: psutil.Process, outcomes: list[Outcome], count: int) -> Iterator[None]:
    """Kill a replica's process as soon as that many requests are through."""
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:

        def kill() -> None:
            while len(outcomes) < count:
                if over.wait(0.01):  # the requests were broken off
                    return
            process.send_signal(signal.SIGKILL)

        waiting = pool.submit(kill)
        try:
            yield
        finally:
            over.set()
        waiting.result()


def run(cluster: Cluster, asked: Sequence[tuple[int, str]], clients: int, outcomes: list[Outcome]) -> None:
    """Ask everything, by that many clients at once; `outcomes` grows while it runs."""
    with ThreadPoolExecutor(clients) as pool:
        for _ in pool.map(lambda request: outcomes.append(cluster.ask(*request)), asked):
            pass


def rates(counters: dict[str, Counter[str]]) -> dict[str, float]:
    """Hit rates over all replicas."""
    total = sum(counters.values(), Counter())
    return {kind: round(total[f"{kind}_hits"] / total[f"{kind}_queries"], 4) for kind in ("mm_cache", "prefix_cache")}


def measure(replicas: int, requests: int, videos: int, clients: int, *, kill: bool) -> dict[str, Any]:
    """One cluster: the workload, and with `kill` the workload again, with a replica killed after a third of it."""
    asked = list(workload(requests, videos))
    with Cluster(replicas) as cluster:
        outcomes: list[Outcome] = []
        begin = time.monotonic()
        run(cluster, asked, clients, outcomes)
        seconds = time.monotonic() - begin
        counters = cluster.counters(requests)
        result: dict[str, Any] = {
            "replicas": replicas,
            "requests": requests,
            "videos": videos,
            "clients": clients,
            "seconds": round(seconds, 1),
            "answered": sum(outcome.status == 200 for outcome in outcomes),
            "hit_rates": rates(counters),
            "requests_of_each_replica": sorted(count["request_success"] for count in counters.values()),
            "videos_encoded": sum(count["mm_cache_queries"] - count["mm_cache_hits"] for count in counters.values()),
        }
        if kill:
            result["killed"] = measure_killed(cluster, asked, clients)
    return result


def measure_killed(cluster: Cluster, asked: Sequence[tuple[int, str]], clients: int) -> dict[str, Any]:
    """The workload while a replica is killed: what its clients got."""
    outcomes: list[Outcome] = []
    begin = time.monotonic()
    with killed_after(cluster, cluster.replica_processes()[0], outcomes, len(asked) // 3):
        run(cluster, asked, clients, outcomes)
    statuses = Counter(str(outcome.status) for outcome in outcomes)
    errors = sorted({outcome.text[:300] for outcome in outcomes if outcome.status != 200})
    return {"statuses": dict(statuses), "errors": errors, "seconds": round(time.monotonic() - begin, 1)}


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["# Replicas on Ray Serve", "", f"`{result['command']}`, embedded model on CPUs, `--prune '{PRUNE}'`.", ""]
    lines += ["| replicas | requests | videos | answered | media cache hits | prefix cache hits | requests of each |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for run_ in result["runs"]:
        hits = " | ".join(f"{100 * run_['hit_rates'][kind]:.1f}%" for kind in ("mm_cache", "prefix_cache"))
        each = ", ".join(map(str, run_["requests_of_each_replica"]))
        lines += [
            f"| {run_['replicas']} | {run_['requests']} | {run_['videos']} | {run_['answered']} | {hits} | {each} |"
        ]
    killed = result["runs"][-1]["killed"]
    statuses = ", ".join(f"{count} x {status}" for status, count in sorted(killed["statuses"].items()))
    lines += ["", f"The same again with one of the replicas killed (SIGKILL) after a third: HTTP {statuses}."]
    lines += ["", *(f"- {line}" for line in describe_lines(result["environment"]))]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure one and two replicas and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--videos", type=int, default=20)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    try:
        require("ray.serve", "ray[cgraph,serve]", "this benchmark")
    except BenchmarkError as error:
        sys.exit(str(error))
    result = {"command": "python -m benchmarks.ray_replicas " + " ".join(sys.argv[1:]), "environment": describe()}
    result["runs"] = [
        measure(replicas, args.requests, args.videos, args.clients, kill=replicas > 1) for replicas in (1, 2)
    ]
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "ray-replicas.json").write_text(json.dumps(result, indent=2) + "\n")
    (args.output / "ray-replicas.md").write_text(report(result))
    print(report(result))


if __name__ == "__main__":
    exit_from("benchmarks.ray_replicas", main)
