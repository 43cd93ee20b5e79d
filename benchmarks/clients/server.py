"""The server that the clients ask, and what it counts of them."""

from __future__ import annotations

import contextlib
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.clients.client import MODEL
from vllm_prune.bench.throughput.processes import free_port, process_group, wait_until_healthy

_START_SECONDS = 300.0


@dataclass(frozen=True)
class Counts:
    """Of requests with videos, since the server's start: how many, and their video tokens before and after pruning."""

    requests: int
    before: int
    kept: int

    def since(self, earlier: Counts) -> Counts:
        """What has come since `earlier`."""
        return Counts(self.requests - earlier.requests, self.before - earlier.before, self.kept - earlier.kept)


def read_counts(url: str) -> Counts:
    """The server's counters, of all models and configurations together."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    samples = [sample for family in families for sample in family.samples]

    def total(name: str, **labels: str) -> int:
        matching = (s for s in samples if s.name == name and labels.items() <= s.labels.items())
        return round(sum(sample.value for sample in matching))

    tokens = "vllm_prune:video_tokens_sum"
    return Counts(total("vllm_prune:requests_total"), total(tokens, stage="before"), total(tokens, stage="kept"))


@contextlib.contextmanager
def running_server(prune: str, media: Path, log: Path) -> Iterator[str]:
    """The URL of a server of the embedded model on a free port.

    Args:
        prune: Its configuration.
        media: Folder that requests may have videos opened from (`file://`).
        log: File for its output.
    """
    port = free_port()
    command = [
        *(sys.executable, "-m", "vllm_prune.cli.main", "serve", MODEL, "--prune", prune),
        *("--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--gpu-memory-utilization", "0.1"),
        # lmms-eval sends the number of frames with each request, and paths instead of videos.
        *("--trust-request-mm-kwargs", "--allowed-local-media-path", str(media)),
    ]
    with process_group(command, {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}, log) as process:
        wait_until_healthy(process, port, log, _START_SECONDS, lambda: None)
        yield f"http://127.0.0.1:{port}"
