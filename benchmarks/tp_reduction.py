"""What tensor parallelism adds to a dense step: reducing the importance over the ranks, beside the prefill step.

    python -m benchmarks.tp_reduction [--dims cpu|7b] [--frames 64] [--size 196] [--backend ray|mp] -o OUTDIR

Every rank chooses tokens for itself, so there is no broadcast, and this reduction is all that is exchanged. In front of
it the ranks wait for each other, here as in every reduction of vLLM's own; a barrier measures that apart, since whoever
comes late would have been waited for in the layer's next reduction.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.dense_prefix import random_video
from benchmarks.ending import exit_from

TP = 2


def watch(worker: Any) -> None:
    """On every rank: times the steps that prefill, and the reductions in them, from now on."""
    from vllm_prune.serving.worker.dense import choose

    worker.tp_times = []
    execute, reduce = worker.model_runner.execute_model, torch.distributed.all_reduce

    def timed_reduce(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if sys._getframe(1).f_globals.get("__name__") != choose.__name__:
            return reduce(tensor, *args, **kwargs)
        begin = time.perf_counter()
        torch.distributed.barrier(choose.get_tp_group().cpu_group)
        together = time.perf_counter()
        result = reduce(tensor, *args, **kwargs)
        if tensor.is_cuda:
            torch.cuda.synchronize()
        entry = worker.tp_times[-1]
        entry["wait_s"] += together - begin
        entry["reduction_s"] += time.perf_counter() - together
        entry["bytes"] += tensor.numel() * tensor.element_size()
        entry["reductions"] += 1
        return result

    def timed_execute(*args: Any, **kwargs: Any) -> Any:
        worker.tp_times.append({"wait_s": 0.0, "reduction_s": 0.0, "bytes": 0, "reductions": 0})
        begin = time.perf_counter()
        result = execute(*args, **kwargs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        worker.tp_times[-1]["step_s"] = time.perf_counter() - begin
        return result

    torch.distributed.all_reduce = timed_reduce
    worker.model_runner.execute_model = timed_execute


def collect(worker: Any) -> list[dict[str, float]]:
    """The steps with a reduction since the last call."""
    found, worker.tp_times = [entry for entry in worker.tp_times if entry["reductions"]], []
    return found


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Prefill steps of `repeats` videos, one at a time."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    from vllm import LLM, SamplingParams

    from vllm_prune import engine_args
    from vllm_prune.bench.throughput.models import resolve_model

    options: dict[str, Any] = {
        "tensor_parallel_size": TP,
        "distributed_executor_backend": args.backend,
        "max_model_len": 16384,
        "max_num_batched_tokens": 16384,
        "enable_prefix_caching": False,
        "mm_processor_cache_gb": 0,
        "limit_mm_per_prompt": {"video": 1, "image": 0},
        "enforce_eager": True,
        "load_format": "dummy",
        "gpu_memory_utilization": 0.5 if torch.cuda.is_available() else 0.1,
        "seed": 0,
    }
    prompt = (
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>what happens in the video?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    with tempfile.TemporaryDirectory() as work:
        model = resolve_model("random", args.dims, Path(work))
        llm = LLM(**engine_args(str(model.path), "default", **options))
        llm.collective_rpc(watch)
        steps: list[dict[str, float]] = []
        for repeat in range(args.repeats + 1):
            video = random_video(repeat, args.frames, args.size)
            once = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
            llm.generate([{"prompt": prompt, "multi_modal_data": {"video": [video]}}], once, use_tqdm=False)
            ranks = llm.collective_rpc(collect)
            if repeat:  # the first request warms up
                steps += [step for rank in ranks for step in rank]
        llm.llm_engine.engine_core.shutdown()
        return summarise(args, steps)


def summarise(args: argparse.Namespace, steps: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over steps and ranks."""

    def median(name: str) -> float:
        return statistics.median(step[name] for step in steps)

    return {
        "dims": args.dims,
        "frames": args.frames,
        "size": args.size,
        "tensor_parallel_size": TP,
        "backend": args.backend,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores",
        "samples": len(steps),
        "bytes_per_step": median("bytes"),
        "reductions_per_step": median("reductions"),
        "step_ms": 1e3 * median("step_s"),
        "reduction_ms": 1e3 * median("reduction_s"),
        "waiting_for_the_other_rank_ms": 1e3 * median("wait_s"),
        "reduction_share": statistics.median(step["reduction_s"] / step["step_s"] for step in steps),
        "waiting_share": statistics.median(step["wait_s"] / step["step_s"] for step in steps),
    }


def main() -> None:
    """Writes `tp-reduction-DEVICE.json`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dims", default="cpu", choices=("cpu", "7b"))
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--size", type=int, default=196, help="height and width of the frames")
    parser.add_argument("--backend", default="ray", choices=("ray", "mp"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    result = {"command": shlex.join(["python", "-m", "benchmarks.tp_reduction", *sys.argv[1:]]), **run(args)}
    args.output.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    (args.output / f"tp-reduction-{device}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    exit_from("benchmarks.tp_reduction", main)
