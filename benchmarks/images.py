"""Time to the first token and KV blocks of a request with several images: stock vLLM, and images pruned.

    python -m benchmarks.images [--dims cpu|7b] [--images 8] [--size 448] [--repeats 5] -o OUTDIR

One process and engine for stock vLLM, one for all configurations; one request at a time, every image its own, no cache
that would save work. Configurations take turns. Blocks are those that vLLM's pool lacks while the request is there.
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
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ending import exit_from

STOCK = "stock"
CONFIGS: dict[str, Any] = {
    "nothing pruned": {"preset": "baseline", "image": False},
    "`dpp`, 50%": {"image": {"method": "dpp", "keep_ratio": 0.5}},
    "`dpp`, 25%": {"image": {"method": "dpp", "keep_ratio": 0.25}},
    "`uniform`, 50%": {"image": {"method": "uniform", "keep_ratio": 0.5}},
    "`uniform`, 25%": {"image": {"method": "uniform", "keep_ratio": 0.25}},
    "`attention`, 50%": {"image": {"method": "attention", "keep_ratio": 0.5}},
    "`attention`, 25%": {"image": {"method": "attention", "keep_ratio": 0.25}},
}
QUESTION = "what is in the images?"


def make_engine(folder: str, images: int, size: int, stock: bool) -> Any:
    """In this process, without any cache that would save work."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
    import torch
    from vllm import LLM

    from vllm_prune import engine_args
    from vllm_prune.bench.throughput.model_dims import FAMILIES

    options: dict[str, Any] = {
        "max_model_len": 4096,
        "max_num_batched_tokens": 4096,
        "enable_prefix_caching": False,
        "mm_processor_cache_gb": 0,
        "block_size": 32,
        "limit_mm_per_prompt": {"video": 0, "image": images},
        "enforce_eager": True,
        "load_format": "dummy",
        "gpu_memory_utilization": 0.5 if torch.cuda.is_available() else 0.1,
        "seed": 0,
    }
    if not FAMILIES[str(json.loads(Path(folder, "config.json").read_text())["model_type"])].squares:
        options["mm_processor_kwargs"] = {"max_pixels": size**2}  # or vLLM profiles its start with far larger images
    return LLM(model=folder, **options) if stock else LLM(**engine_args(folder, "baseline", override="any", **options))


class HeldBlocks:
    """The most KV blocks that were taken after any step was scheduled."""

    def __init__(self, llm: Any) -> None:
        scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        self._pool, self._schedule = scheduler.kv_cache_manager.block_pool, scheduler.schedule
        self._free = self._pool.get_num_free_blocks()
        self.most = 0
        scheduler.schedule = self._watch

    def _watch(self, *args: Any, **kwargs: Any) -> Any:
        output = self._schedule(*args, **kwargs)
        self.most = max(self.most, self._free - self._pool.get_num_free_blocks())
        return output


def measure(llm: Any, held: HeldBlocks, config: Any, seed: int, images: int, size: int) -> dict[str, float]:
    """One request: seconds to its first token, its prompt's length, its KV blocks."""
    from PIL import Image
    from vllm import SamplingParams

    noise = np.random.default_rng(seed).integers(0, 255, (images, size, size, 3), dtype=np.uint8)
    places = "<|vision_start|><|image_pad|><|vision_end|>" * images
    request: dict[str, Any] = {
        "prompt": f"<|im_start|>user\n{places}{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
        "multi_modal_data": {"image": [Image.fromarray(pixels) for pixels in noise]},
    }
    if config is not None:
        request["mm_processor_kwargs"] = {"prune": config}
    held.most = 0
    begin = time.perf_counter()
    (output,) = llm.generate([request], SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True), use_tqdm=False)
    return {
        "ttft_s": time.perf_counter() - begin,
        "prompt_tokens": len(output.prompt_token_ids),
        "kv_blocks": held.most,
    }


def measure_server(args: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """All configurations of one engine in turn, `repeats` times over; the first round warms up."""
    stock = args.server == STOCK
    configs = {STOCK: None} if stock else CONFIGS
    llm = make_engine(args.model, args.images, args.size, stock)
    held = HeldBlocks(llm)
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in configs}
    for repeat in range(args.repeats + 1):
        for name, config in configs.items():
            sample = measure(llm, held, config, repeat, args.images, args.size)
            if repeat:
                samples[name].append(sample)
    return samples


def summarise(samples: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians and the spread of times, and both beside stock vLLM's."""
    stock = statistics.median(sample["ttft_s"] for sample in samples[STOCK])
    rows: dict[str, dict[str, float]] = {}
    for name, own in samples.items():
        times = [sample["ttft_s"] for sample in own]
        rows[name] = {
            "prompt_tokens": own[0]["prompt_tokens"],
            "kv_blocks": own[0]["kv_blocks"],
            "ttft_s": statistics.median(times),
            "ttft_least_s": min(times),
            "ttft_most_s": max(times),
            "ttft_over_stock": statistics.median(times) / stock,
        }
    return rows


def write(args: argparse.Namespace, rows: dict[str, Any], argv: list[str], place: dict[str, Any]) -> Path:
    """images-DIMS.json and .md in the output folder."""
    from vllm_prune.bench.throughput.provenance import describe_lines

    command = ["python", "-m", "benchmarks.images", *argv]
    args.output.mkdir(parents=True, exist_ok=True)
    path: Path = args.output / f"images-{args.dims}.json"
    path.write_text(json.dumps({"command": command, "rows": rows, "provenance": place}, indent=1) + "\n")
    lines = [
        f"# A request with {args.images} images of {args.size} x {args.size} pixels",
        "",
        f"`{' '.join(command)}`: random weights, one request at a time, {args.repeats} repeats, median (least, most).",
        "",
        "| server | prompt tokens | KV blocks of 32 | TTFT, s | ÷ stock |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        spread = f"{row['ttft_s']:.2f} ({row['ttft_least_s']:.2f}, {row['ttft_most_s']:.2f})"
        counts = f"{row['prompt_tokens']:.0f} | {row['kv_blocks']:.0f}"
        lines.append(f"| {name} | {counts} | {spread} | {row['ttft_over_stock']:.2f} |")
    lines += ["", *(f"- {line}" for line in describe_lines(place))]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    return path


def main(argv: list[str] | None = None) -> int:
    """Prints the table and writes it, with where it comes from, to OUTDIR/images-*.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", default="cpu", help="dimensions of the random model (see bench/throughput)")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--size", type=int, default=448, help="pixels along a side of an image, a multiple of 28")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--server", choices=[STOCK, "pruned"], help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args(argv)
    if args.server:
        args.output.write_text(json.dumps(measure_server(args)))
        return 0
    from vllm_prune.bench.throughput.models import resolve_model
    from vllm_prune.bench.throughput.provenance import describe

    place = describe()
    samples: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as work:
        folder = str(resolve_model("random", args.dims, Path(work)).path)
        for server in (STOCK, "pruned"):
            found = Path(work, f"{server}.json")
            own = [*(argv or sys.argv[1:]), "--server", server, "--model", folder, "-o", str(found)]
            subprocess.run([sys.executable, "-m", "benchmarks.images", *own], check=True)
            samples |= json.loads(found.read_text())
    path = write(args, summarise(samples), list(argv or sys.argv[1:]), place)
    print(path.with_suffix(".md").read_text())
    return 0


if __name__ == "__main__":
    exit_from("benchmarks.images", main)
