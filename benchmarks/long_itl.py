"""What others wait for while a long video is prefilled: time between tokens, with chunked prefill and dense prefixes.

    python -m benchmarks.long_itl [--dims cpu] [--frames 512] [--size 112] [--step-tokens 512] [--repeats 3] -o OUTDIR

Some requests decode; then one with a video comes. Every step until its first token gives each of the others a token, so
the lengths of these steps are their inter-token latencies. Stock vLLM, the plugin absent, and each preset have an
engine of their own, one after the other in one run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dense_prefix import random_video
from benchmarks.ending import exit_from
from benchmarks.result_file import measure_into

STOCK = "stock"
ASKED = (
    "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>what happens in the video?<|im_end|>\n"
    "<|im_start|>assistant\n"
)
OTHER = "<|im_start|>user\ntell me a story<|im_end|>\n<|im_start|>assistant\n"


def make_engine(folder: str, who: str, args: argparse.Namespace) -> Any:
    """An engine in this process."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if who == STOCK:
        os.environ["VLLM_PLUGINS"] = ""
    from vllm import LLM

    options: dict[str, Any] = {
        "max_model_len": 16384,
        "max_num_batched_tokens": args.step_tokens,
        "enable_prefix_caching": False,
        "mm_processor_cache_gb": 0,
        "limit_mm_per_prompt": {"video": 1, "image": 0},
        "enforce_eager": True,
        "load_format": "dummy",
        "gpu_memory_utilization": 0.1,
        "seed": 0,
    }
    if who == STOCK:
        return LLM(model=folder, **options)
    from vllm_prune import engine_args

    return LLM(**engine_args(folder, who, dense_tokens=args.dense_tokens, **options))


def steps_of_prefill(llm: Any, seed: int, args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of every step until the video's first token: those with the vision encoder, and all others."""
    from vllm import SamplingParams

    engine = llm.llm_engine
    model = engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.get_model()
    encode: Any = model.embed_multimodal
    encoding = [0.0]

    def timed(**inputs: Any) -> Any:
        begin = time.perf_counter()
        rows = encode(**inputs)
        encoding[0] += time.perf_counter() - begin
        return rows

    endless = SamplingParams(max_tokens=4000, temperature=0.0, ignore_eos=True)
    others = llm.enqueue([{"prompt": OTHER}] * args.others, endless, use_tqdm=False)
    for _ in range(5):
        engine.step()
    video = {"prompt": ASKED, "multi_modal_data": {"video": [random_video(seed, args.frames, args.size)]}}
    (asked,) = llm.enqueue([video], SamplingParams(max_tokens=1, ignore_eos=True), use_tqdm=False)
    model.embed_multimodal = timed
    found: dict[str, list[float]] = {"all": [], "decoder": []}
    done = False
    while not done:
        encoding[0], begin = 0.0, time.perf_counter()
        outputs = engine.step()
        seconds = time.perf_counter() - begin
        found["all"].append(seconds)
        found["decoder"].append(seconds - encoding[0])
        done = any(output.request_id.split("-")[0] == asked.split("-")[0] for output in outputs)
    model.embed_multimodal = encode
    engine.abort_request(others, internal=True)
    while engine.has_unfinished_requests():
        engine.step()
    return found


def measure(folder: str, who: str, args: argparse.Namespace, pipe: Any) -> None:
    """Sends the steps of all repeats of one engine."""
    llm = make_engine(folder, who, args)
    steps_of_prefill(llm, 0, args)  # warms up
    pipe.send([steps_of_prefill(llm, 1 + repeat, args) for repeat in range(args.repeats)])
    llm.llm_engine.engine_core.shutdown()


def summarise(runs: list[dict[str, list[float]]]) -> dict[str, float]:
    """Milliseconds over the steps of all repeats."""
    steps = {kind: np.concatenate([run[kind] for run in runs]) * 1e3 for kind in runs[0]}
    return {
        "steps": float(np.mean([len(run["all"]) for run in runs])),
        "prefill_ms": float(np.mean([sum(run["all"]) for run in runs]) * 1e3),
        "itl_p50_ms": float(np.percentile(steps["all"], 50)),
        "itl_p99_ms": float(np.percentile(steps["all"], 99)),
        "decoder_p50_ms": float(np.percentile(steps["decoder"], 50)),
        "decoder_p99_ms": float(np.percentile(steps["decoder"], 99)),
    }


def run(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """What `summarise` says of stock vLLM and of each preset."""
    from vllm_prune.bench.throughput.models import resolve_model

    results: dict[str, dict[str, float]] = {}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as work:
        folder = str(resolve_model("random", args.dims, Path(work)).path)
        for who in (STOCK, *args.presets):
            ours, theirs = context.Pipe()
            process = context.Process(target=measure, args=(folder, who, args, theirs))
            process.start()
            theirs.close()
            results[who] = summarise(ours.recv())
            process.join()
            print(f"{who:14}" + "  ".join(f"{key} {value:.1f}" for key, value in results[who].items()), flush=True)
    return results


def main(argv: list[str] | None = None) -> int:
    """Prints a line for each engine and writes all to OUTDIR/long-itl.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", default="cpu", help="dimensions of the random model (see bench/throughput)")
    parser.add_argument("--frames", type=int, default=512)
    parser.add_argument("--size", type=int, default=112, help="pixels along a side of a frame, a multiple of 28")
    parser.add_argument("--step-tokens", type=int, default=512, help="max_num_batched_tokens")
    parser.add_argument("--dense-tokens", type=int, default=8192)
    parser.add_argument("--others", type=int, default=4, help="requests that decode")
    parser.add_argument("--presets", nargs="+", default=["default", "stage2_only"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args(argv)
    path = args.output / "long-itl.json"
    command = ["python", "-m", "benchmarks.long_itl", *(argv or sys.argv[1:])]
    measure_into(path, command, lambda: {"engines": run(args)})
    print(path)
    return 0


if __name__ == "__main__":
    exit_from("benchmarks.long_itl", main)
