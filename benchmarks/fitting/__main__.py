"""Which model fits which GPU, by which flags, and how many requests at a time: from the estimator, nothing is run.

    python -m benchmarks.fitting -o benchmarks/results

`configs/` has the sizes of the published models' config.json, as far as `vllm-prune estimate` reads them.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_prune.config import PruneConfig
from vllm_prune.estimate.device import GIB, Device, kv_space
from vllm_prune.estimate.dims import ModelDims, read_dims
from vllm_prune.estimate.estimate import Estimate, Request, estimate
from vllm_prune.estimate.video import VideoShape

CONFIGS = Path(__file__).with_name("configs")
GPUS = {"L4, RTX 4090": 24, "A100": 40, "L40S, A6000": 48, "A100, H100": 80, "H200": 141}
"""Memory in GiB by the name of a GPU that has it."""
PRESETS = ("stage1_only", "default", "aggressive")
TENSOR_PARALLEL = (1, 2, 4, 8)
RESERVED = 0.1
"""Share of a GPU's memory that is left to activations, graphs and the vision encoder, which nothing here predicts."""
LONGEST = 128_000
"""Tokens of a prompt that the models are made for, and vLLM's default."""
VIDEO = VideoShape.parse(64, "448x448")


@dataclass(frozen=True)
class Fit:
    """A model on some GPUs of a kind: how many of them, tokens that the KV cache then holds, and what fits."""

    gpus: int
    kv_tokens: int
    max_model_len: int
    requests: dict[str, int]
    """At a time, without pruning ("unpruned") and by preset."""

    def flags(self) -> str:
        """The options that `vllm-prune serve` needs beyond its defaults."""
        parallel = f"-tp {self.gpus} " if self.gpus > 1 else ""
        shortened = f"--max-model-len {self.max_model_len}" if self.max_model_len < LONGEST else ""
        return (parallel + shortened).strip()


def find_fit(dims: ModelDims, memory_gib: float) -> Fit | None:
    """The least number of GPUs that leaves room for a request that is not pruned; None where eight do not."""
    estimates = {preset: estimate(dims, Request(video=VIDEO), PruneConfig.parse(preset), None) for preset in PRESETS}
    for gpus in TENSOR_PARALLEL:
        memory = int(memory_gib * gpus * GIB)
        space = kv_space(Device("", memory), dims.parameters * dims.dtype_bytes) - int(RESERVED * memory)
        fit = _fit(gpus, space, estimates)
        if fit.requests["unpruned"] >= 1:
            return fit
    return None


def _fit(gpus: int, space: int, estimates: dict[str, Estimate]) -> Fit:
    costs = {"unpruned": estimates[PRESETS[0]].before, **{name: found.after for name, found in estimates.items()}}
    unpruned = costs["unpruned"]
    tokens = max(0, space) * unpruned.prompt_tokens // unpruned.kv.bytes
    longest = min(LONGEST, tokens // 1024 * 1024)
    return Fit(gpus, tokens, longest, {name: max(0, space) // c.kv.bytes for name, c in costs.items()})


def _rows() -> list[dict[str, Any]]:
    found = []
    for config in sorted(CONFIGS.glob("*.json"), key=lambda path: read_dims(str(path)).parameters):
        dims = read_dims(str(config))
        for gpu, memory in GPUS.items():
            fit = find_fit(dims, memory)
            if fit is not None:
                row = {"model": config.stem, "GPU": f"{gpu} ({memory} GiB)", "GPUs": fit.gpus, "flags": fit.flags()}
                found.append({**row, "KV tokens": fit.kv_tokens, **fit.requests})
    return found


def _page(result: dict[str, Any]) -> str:
    titles = list(result["rows"][0])
    t, h, w = result["grid"]
    lines = [
        "# Which model fits which GPU",
        "",
        "Estimated from the models' sizes, not run: bfloat16 weights, vLLM's share of the memory (0.92),",
        f"{RESERVED:.0%} of the memory left to activations and the vision encoder. The last columns say how many",
        "requests have room in the KV cache at a time, by preset: a video of 64 frames of 448 x 448",
        f"({t} x {h} x {w} tokens) and 64 tokens of text; `--max-num-seqs` bounds them too. `--max-model-len` is what",
        "the KV cache holds, in whole multiples of 1,024, where it does not hold vLLM's default.",
        "",
        f"| {' | '.join(titles)} |",
        f"|{'---|' * len(titles)}",
        *(f"| {' | '.join(_cell(title, row[title]) for title in titles)} |" for row in result["rows"]),
        "",
        f"- Command: `{result['command']}`",
    ]
    return "\n".join(lines) + "\n"


def _cell(title: str, value: Any) -> str:
    if title == "flags":
        return f"`{value}`" if value else "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def main() -> int:
    """Writes `fitting.json` and `fitting.md`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    command = shlex.join(["python", "-m", "benchmarks.fitting", *sys.argv[1:]])
    grid = VIDEO.grid(read_dims(str(next(CONFIGS.glob("*.json")))).vision, None)
    result = {"command": command, "grid": grid, "reserved": RESERVED, "rows": _rows()}
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "fitting.json").write_text(json.dumps(result, indent=2) + "\n")
    (args.output / "fitting.md").write_text(_page(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
