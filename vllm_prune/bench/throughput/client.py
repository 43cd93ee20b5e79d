"""One load on one server: `vllm bench serve` as a subprocess, its result read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_prune.bench.throughput.configurations import VLLM
from vllm_prune.bench.throughput.errors import BenchmarkError
from vllm_prune.bench.throughput.processes import Tick, log_tail, process_group, wait_for_end


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is sent: the options of `vllm bench serve` that name the requests, and how many at a time."""

    dataset_arguments: Sequence[str]
    clients: int
    num_prompts: int
    output_len: int  # tokens
    warmups: int
    seed: int

    def command(self, port: int, model: str, result: Path) -> list[str]:
        """The command that sends this load and writes `result`."""
        return [
            *VLLM, "bench", "serve",
            "--backend", "openai-chat",
            "--base-url", f"http://127.0.0.1:{port}",
            "--endpoint", "/v1/chat/completions",
            "--model", model,
            *self.dataset_arguments,
            "--num-prompts", str(self.num_prompts),
            "--max-concurrency", str(self.clients),
            "--output-len", str(self.output_len),
            "--num-warmups", str(self.warmups),
            "--seed", str(self.seed),
            "--temperature", "0",
            "--ignore-eos",
            "--percentile-metrics", "ttft,tpot,itl,e2el",
            "--metric-percentiles", "99",
            "--save-result", "--save-detailed",
            "--result-dir", str(result.parent),
            "--result-filename", result.name,
        ]  # fmt: skip


def send(
    command: Sequence[str], num_prompts: int, result: Path, log: Path, timeout_s: float, tick: Tick
) -> dict[str, Any]:
    """Run the client and return what it measured.

    Raises:
        BenchmarkError: the client failed, or a request did.
    """
    # Without plugins: the client is vLLM's own, whatever server it talks to.
    with process_group(command, {"VLLM_PLUGINS": ""}, log) as process:
        status = wait_for_end(process, timeout_s, tick)
    if status != 0 or not result.is_file():
        raise BenchmarkError(f"vllm bench serve ended with status {status}; {log}:\n{log_tail(log)}")
    measured: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    if measured["completed"] != num_prompts:
        errors = sorted({error for error in measured.get("errors", []) if error})
        raise BenchmarkError(f"{measured['completed']} of {num_prompts} requests succeeded; {errors[:3]}; see {log}")
    return measured
