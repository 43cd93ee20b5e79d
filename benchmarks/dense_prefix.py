"""What the dense prefix costs: measured prefill steps beside the ideal ones.

    python -m benchmarks.dense_prefix [--dims cpu|7b] [--frames 64] [--size 196] [--eager] [--repeats 7] -o OUTDIR

One engine, one request at a time, every video its own. The ideal step is the measured step of a prompt that has only
the kept tokens from the start (`uniform` at the same count), plus the operations that the dense prefix has more, at the
rate at which the unpruned prompt's operations were measured.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.ending import exit_from
from benchmarks.result_file import measure_into

PRESETS = ("default", "stage2_only", "conservative", "aggressive")


class StepTimes:
    """Seconds spent in the vision encoder (with stage 1) and in the language model, of one request at a time."""

    def __init__(self, model: Any) -> None:
        self.encoder = self.decoder = 0.0
        model.embed_multimodal = self._timed(model.embed_multimodal, "encoder")
        model.forward = self._timed(model.forward, "decoder")

    def _timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = self._now()
            result = function(*args, **kwargs)
            setattr(self, name, getattr(self, name) + self._now() - begin)
            return result

        return timed

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def reset(self) -> None:
        """Before a request."""
        self.encoder = self.decoder = 0.0


def make_engine(folder: Path, frames: int, eager: bool) -> Any:
    """One engine for all configurations, in this process, without any cache that would save work."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
    from vllm import LLM

    from vllm_prune import engine_args

    options: dict[str, Any] = {
        "max_model_len": 16384,
        "max_num_batched_tokens": 16384,
        "enable_prefix_caching": False,
        "mm_processor_cache_gb": 0,
        "limit_mm_per_prompt": {"video": 1, "image": 0},
        "enforce_eager": eager,
        "load_format": "dummy",
        "gpu_memory_utilization": 0.5 if torch.cuda.is_available() else 0.1,
        "seed": 0,
    }
    return LLM(**engine_args(str(folder), "default", override="any", **options))


def random_video(seed: int, frames: int, size: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Frames [T, size, size, 3] of noise, which nothing can find still, and what vLLM wants to know about them."""
    pixels = np.random.default_rng(seed).integers(0, 255, (frames, size, size, 3), dtype=np.uint8)
    return pixels, {
        "fps": 2.0,
        "duration": frames / 2,
        "total_num_frames": frames,
        "frames_indices": list(range(frames)),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }


def measure(llm: Any, times: StepTimes, config: Any, seed: int, frames: int, size: int) -> dict[str, float]:
    """Seconds of one request's encoder and prefill step under `config`, and its prompt's length."""
    from vllm import SamplingParams

    prompt = (
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>what happens in the video?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    request = {
        "prompt": prompt,
        "multi_modal_data": {"video": [random_video(seed, frames, size)]},
        "mm_processor_kwargs": {"prune": config},
    }
    times.reset()
    begin = time.perf_counter()
    (output,) = llm.generate([request], SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True), use_tqdm=False)
    return {
        "ttft_s": time.perf_counter() - begin,
        "encoder_s": times.encoder,
        "decoder_s": times.decoder,
        "prompt_tokens": len(output.prompt_token_ids),
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All configurations in turn, `repeats` times over, and what follows."""
    from tqdm import tqdm

    from vllm_prune.bench.throughput.models import resolve_model
    from vllm_prune.budget import plan_counts
    from vllm_prune.config import preset

    with tempfile.TemporaryDirectory() as work:
        model = resolve_model("random", args.dims, Path(work))
        llm = make_engine(model.path, args.frames, args.eager)
        runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
        times = StepTimes(runner.get_model())
        cells = (args.frames // 2) * (args.size // 28) ** 2
        configs: dict[str, Any] = {"baseline": "baseline"}
        for name in PRESETS:
            configs[name] = name
            kept = plan_counts(preset(name), cells).kept
            configs[f"short as {name}"] = {"preset": "baseline", "method": "uniform", "target_token_num": kept}
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in configs}
        for repeat in tqdm(range(args.repeats + 1), desc="repeats"):
            for name, config in configs.items():
                sample = measure(llm, times, config, repeat, args.frames, args.size)
                if repeat:  # the first round warms up
                    samples[name].append(sample)
        return summarise(model.path, args, samples)


def summarise(folder: Path, args: argparse.Namespace, samples: Mapping[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians, and every preset's step beside its ideal."""
    from vllm_prune.config import preset
    from vllm_prune.estimate.dims import read_dims
    from vllm_prune.estimate.estimate import Request, estimate
    from vllm_prune.estimate.flops import decoder_flops
    from vllm_prune.estimate.video import VideoShape

    median = {
        name: {key: statistics.median(sample[key] for sample in own) for key in own[0]} for name, own in samples.items()
    }
    dims = read_dims(str(folder))
    grid = (args.frames // 2) * (args.size // 28) ** 2
    text = int(median["baseline"]["prompt_tokens"]) - grid
    request = Request(video=VideoShape(frames=args.frames, width=args.size, height=args.size), text_tokens=text)
    results: dict[str, Any] = {}
    for name in PRESETS:
        found = estimate(dims, request, preset(name))
        rate = found.before.flops.rest.total / median["baseline"]["decoder_s"]
        depth = found.layers[-1] + 1
        short = decoder_flops(dims.text, [text + found.counts.kept] * depth)
        more = (found.after.flops.dense_prefix.total + found.after.flops.importance.total - short.total) / rate
        ideal = median[f"short as {name}"]["decoder_s"] + more
        results[name] = {
            "decoder_s": median[name]["decoder_s"],
            "ideal_decoder_s": ideal,
            "decoder_over_ideal": median[name]["decoder_s"] / ideal,
            "dense_prefix_share": more / ideal,
            "ttft_s": median[name]["ttft_s"],
            "ttft_over_ideal": median[name]["ttft_s"] / (median[f"short as {name}"]["ttft_s"] + more),
            "ttft_over_unpruned": median[name]["ttft_s"] / median["baseline"]["ttft_s"],
        }
    return {"medians": median, "presets": results}


def main(argv: list[str] | None = None) -> int:
    """Prints the table and writes it, with where it comes from, to OUTDIR/dense-prefix-*.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", default="cpu", help="dimensions of the random model (see bench/throughput)")
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--size", type=int, default=196, help="pixels along a side of a frame, a multiple of 28")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args(argv)
    kind = "eager" if args.eager else "compiled"
    path = args.output / f"dense-prefix-{args.dims}-{kind}.json"
    command = ["python", "-m", "benchmarks.dense_prefix", *(argv or sys.argv[1:])]
    results = measure_into(path, command, lambda: run(args))
    for name, row in results["presets"].items():
        print(f"{name:14}" + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))
    print(path)
    return 0


if __name__ == "__main__":
    exit_from("benchmarks.dense_prefix", main)
