"""KV blocks held, read from a server's `/metrics` at short intervals while it is under load."""

from __future__ import annotations

import http.client
import re
import threading
import urllib.request
from dataclasses import dataclass
from types import TracebackType

_USAGE = re.compile(r"^vllm:kv_cache_usage_perc\{[^}]*\}\s+(\S+)", re.MULTILINE)
_CACHE = re.compile(r"^vllm:cache_config_info\{([^}]*)\}", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True, kw_only=True)
class KvReading:
    """The KV cache at one moment; several engines (data parallel) are added up."""

    blocks_held: int
    block_size: int  # tokens


def parse_metrics(text: str) -> KvReading | None:
    """Read Prometheus text; None before the engine has reported its cache."""
    usages = [float(value) for value in _USAGE.findall(text)]
    caches = [dict(_LABEL.findall(labels)) for labels in _CACHE.findall(text)]
    if not usages or not caches or not caches[0].get("num_gpu_blocks", "").isdigit():
        return None
    # One block is vLLM's null block, which its usage leaves out.
    usable = int(caches[0]["num_gpu_blocks"]) - 1
    return KvReading(blocks_held=round(sum(usages) * usable), block_size=int(caches[0]["block_size"]))


class KvSampler(threading.Thread):
    """Reads `/metrics` every `interval_s` seconds between entering and leaving its `with` block.

    `peak` is the most KV blocks seen held (None: never any), `samples` how often it looked. vLLM updates the value once
    an engine step, so requests that live shorter than `interval_s` may be missed: the peak is a lower bound.
    """

    def __init__(self, port: int, interval_s: float) -> None:
        super().__init__(daemon=True)
        self.peak: int | None = None
        self.block_size: int | None = None
        self.samples = 0
        self._url = f"http://127.0.0.1:{port}/metrics"
        self._interval_s = interval_s
        self._stopped = threading.Event()

    def run(self) -> None:
        """Sample until told to stop."""
        while not self._stopped.wait(self._interval_s):
            self._sample()

    def _sample(self) -> None:
        try:
            with urllib.request.urlopen(self._url, timeout=10) as response:
                reading = parse_metrics(response.read().decode())
        except (OSError, http.client.HTTPException):
            return  # a busy server may miss a sample; `samples` tells how many were taken
        if reading is not None:
            self.samples += 1
            if reading.blocks_held > (self.peak or 0):
                self.peak = reading.blocks_held
            self.block_size = reading.block_size

    def __enter__(self) -> KvSampler:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self.join()
