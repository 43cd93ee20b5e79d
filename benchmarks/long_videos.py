"""Time to the first token of videos from 64 to 2,048 frames: stock vLLM, and as many frames pruned to a fifth.

    python -m benchmarks.long_videos [--dims cpu|7b] [--frames 64 256 1024 2048] [--size 112] [--repeats 3] -o OUTDIR

One process and engine for stock vLLM, one for all configurations; one request at a time, every video its own, no cache
that would save work; a round of all lengths warms up. A step has room for the longest video: vLLM's encoder cache,
which is as large, has to hold what is kept of one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ending import exit_from

STOCK = "stock"
CONFIGS: dict[str, Any] = {
    "`uniform`, 20%": {"method": "uniform", "keep_ratio": 0.2},
    "`dpp` by frames, 20%": {"method": "dpp", "keep_ratio": 0.2},
    "`default` (the question), 20%": "default",
}
QUESTION, FPS = "what happens?", 2.0
TEXT = 256
"""Tokens that a prompt may have beside its video."""


def most_tokens(args: argparse.Namespace) -> int:
    """Of the longest video, unpruned."""
    return max(args.frames) // 2 * (args.size // 28) ** 2


def make_engine(args: argparse.Namespace, stock: bool) -> Any:
    """In this process, without any cache that would save work."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    import torch
    from vllm import LLM

    from vllm_prune import engine_args

    tokens = most_tokens(args) + TEXT
    options: dict[str, Any] = {
        "max_model_len": tokens,
        "max_num_batched_tokens": tokens,
        "mm_processor_kwargs": {"max_pixels": args.size**2},  # or vLLM profiles its start with far larger frames
        "enable_prefix_caching": False,
        "mm_processor_cache_gb": 0,
        "block_size": 32,
        "limit_mm_per_prompt": {"video": 1, "image": 0},
        "enforce_eager": True,
        "load_format": "dummy",
        "gpu_memory_utilization": 0.5 if torch.cuda.is_available() else 0.1,
        "seed": 0,
    }
    if stock:
        return LLM(model=args.model, **options)
    return LLM(**engine_args(args.model, "baseline", override="any", dense_tokens=tokens, **options))


def measure(llm: Any, config: Any, frames: int, size: int, seed: int) -> dict[str, float]:
    """One request: seconds to its first token, and its prompt's length."""
    from vllm import SamplingParams

    pixels = np.random.default_rng(seed).integers(0, 255, (frames, size, size, 3), dtype=np.uint8)
    metadata = {
        "fps": FPS,
        "duration": frames / FPS,
        "total_num_frames": frames,
        "frames_indices": list(range(frames)),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }
    place = "<|vision_start|><|video_pad|><|vision_end|>"
    request: dict[str, Any] = {
        "prompt": f"<|im_start|>user\n{place}{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
        "multi_modal_data": {"video": [(pixels, metadata)]},
    }
    if config is not None:
        request["mm_processor_kwargs"] = {"prune": config}
    begin = time.perf_counter()
    (output,) = llm.generate([request], SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True), use_tqdm=False)
    return {"ttft_s": time.perf_counter() - begin, "prompt_tokens": len(output.prompt_token_ids)}


def measure_server(args: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """All configurations of one engine in turn, at each length: the median and the extremes."""
    stock = args.server == STOCK
    configs = {STOCK: None} if stock else CONFIGS
    llm = make_engine(args, stock)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in configs}
    for frames in args.frames:
        for config in configs.values():
            measure(llm, config, frames, args.size, 0)
        runs = [
            {name: measure(llm, config, frames, args.size, 1 + repeat) for name, config in configs.items()}
            for repeat in range(args.repeats)
        ]
        for name, own in found.items():
            seconds = [run[name]["ttft_s"] for run in runs]
            own.append(
                {
                    "frames": frames,
                    "ttft_s": statistics.median(seconds),
                    "least_s": min(seconds),
                    "most_s": max(seconds),
                    "prompt_tokens": runs[0][name]["prompt_tokens"],
                }
            )
    return found


def draw(rows: dict[str, list[dict[str, float]]], path: Path) -> None:
    """A line for each server."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4.2), constrained_layout=True)
    for name, own in rows.items():
        axis.plot(
            [row["frames"] for row in own], [row["ttft_s"] for row in own], marker="o", label=name.replace("`", "")
        )
    axis.set(xlabel="frames", ylabel="time to the first token, s", xscale="log", yscale="log")
    axis.set_xticks([row["frames"] for row in rows[STOCK]], [f"{row['frames']:.0f}" for row in rows[STOCK]])
    axis.legend(frameon=False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def write(args: argparse.Namespace, rows: dict[str, Any], argv: list[str], place: dict[str, Any]) -> Path:
    """long-videos-DIMS.json, .md and .png in the output folder."""
    from vllm_prune.bench.throughput.provenance import describe_lines

    command = ["python", "-m", "benchmarks.long_videos", *argv]
    args.output.mkdir(parents=True, exist_ok=True)
    path: Path = args.output / f"long-videos-{args.dims}.json"
    path.write_text(json.dumps({"command": command, "rows": rows, "provenance": place}, indent=1) + "\n")
    lengths = [f"{row['frames']:.0f}" for row in rows[STOCK]]
    lines = [
        f"# Time to the first token by the length of a video, {args.size} x {args.size} pixels",
        "",
        f"`{' '.join(command)}`: random weights, one request at a time; median of {args.repeats} (least, most), "
        "divided by stock's, and tokens of the prompt.",
        "",
        f"| server | {' | '.join(f'{length} frames' for length in lengths)} |",
        f"|---|{'---|' * len(lengths)}",
    ]
    for name, own in rows.items():
        cells = [
            f"{row['ttft_s']:.2f} s ({row['least_s']:.2f}, {row['most_s']:.2f}), "
            f"{row['ttft_s'] / stock['ttft_s']:.2f}, {row['prompt_tokens']:.0f}"
            for row, stock in zip(own, rows[STOCK], strict=True)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", f"![Time to the first token by frames]({path.stem}.png)", ""]
    lines += [f"- {line}" for line in describe_lines(place)]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    draw(rows, path.with_suffix(".png"))
    return path


def main(argv: list[str] | None = None) -> int:
    """Prints the table and writes it, with where it comes from, to OUTDIR/long-videos-*."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", default="cpu", help="dimensions of the random model (see bench/throughput)")
    parser.add_argument("--frames", type=int, nargs="+", default=[64, 256, 1024, 2048])
    parser.add_argument("--size", type=int, default=112, help="pixels along a side of a frame, a multiple of 28")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, help="of the decoder, in place of the dimensions' own")
    parser.add_argument("--server", choices=[STOCK, "pruned"], help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args(argv)
    if args.server:
        args.output.write_text(json.dumps(measure_server(args)))
        return 0
    from vllm_prune.bench.throughput.named_dims import DIMS
    from vllm_prune.bench.throughput.provenance import describe
    from vllm_prune.bench.throughput.random_model import write_random_model

    place, given = describe(), list(argv or sys.argv[1:])
    rows: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as work:
        dims = DIMS[args.dims] if args.layers is None else replace(DIMS[args.dims], layers=args.layers)
        folder = str(write_random_model(Path(work, "model"), dims))
        for server in (STOCK, "pruned"):
            found = Path(work, f"{server}.json")
            own = [*given, "--server", server, "--model", folder, "-o", str(found)]
            subprocess.run([sys.executable, "-m", "benchmarks.long_videos", *own], check=True)
            rows |= json.loads(found.read_text())
    path = write(args, rows, given, place)
    print(path.with_suffix(".md").read_text())
    return 0


if __name__ == "__main__":
    exit_from("benchmarks.long_videos", main)
