"""Waits of the host for the device, and kernel launches, of a video's way through the model: counted, without a GPU.

    python -m benchmarks.host_syncs [--before EARLIER.json] -o OUTDIR

The tensors are those of tests/dense/emulated_cuda.py, and so is the step: a video of 16 x 14 x 14 tokens, 28 layers of
plain PyTorch operations, two other requests. vLLM's own layers launch fewer kernels each. `--before` takes the figures
that this script wrote for another commit.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
from pathlib import Path
from typing import Any

import torch

from vllm_prune.bench.throughput import provenance

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "dense"))

CONFIGS: dict[str, Any] = {
    "default": "default",
    "default, quota per segment": {"preset": "default", "params": {"quota": "segment"}},
    "default, two pruning layers": {"preset": "default", "layers": [3, 6], "keep_ratio": [0.6, 0.5]},
    "default, selector dpp": {"preset": "default", "params": {"selector": "dpp"}},
    "stage1_only": "stage1_only",
}


def count(config: Any) -> dict[str, dict[str, Any]]:
    """By phase: waits, launches, and where the waits are."""
    from emulated_cuda import emulate, to_cuda
    from small_step import SmallStep, alone

    with torch.no_grad(), alone(), emulate() as counts:
        phases = SmallStep(to_cuda, counts, config).run().counts
    return {
        phase: {
            "waits": len(found.syncs),
            "launches": found.launches,
            "places": collections.Counter(f"{sync.kind}: {sync.place}" for sync in found.syncs),
        }
        for phase, found in phases.items()
    }


def render(figures: dict[str, Any], before: dict[str, Any] | None) -> str:
    """A table in Markdown."""
    lines = [
        "# Waits of the host for the device, and kernel launches",
        "",
        f"`{figures['command']}`. Counted with emulated CUDA tensors, on a machine without a GPU; what a wait costs "
        "there is not measured. Launches are those of plain PyTorch layers.",
        "",
        "| configuration | phase | waits before | waits | launches before | launches |",
        "|---|---|---|---|---|---|",
    ]
    for name, phases in figures["counts"].items():
        for phase, found in phases.items():
            earlier = before["counts"][name][phase] if before else {"waits": "-", "launches": "-"}
            cells = [name, phase, earlier["waits"], found["waits"], earlier["launches"], found["launches"]]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", *(f"- {line}" for line in provenance.describe_lines(figures["provenance"]))]
    if before:
        lines += ["", "Before:", "", *(f"- {line}" for line in provenance.describe_lines(before["provenance"]))]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Counts, and writes host-syncs.json and host-syncs.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--before", type=Path, help="host-syncs.json of another commit")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the figures")
    options = parser.parse_args()
    figures = {
        "command": " ".join(["python -m benchmarks.host_syncs", *sys.argv[1:]]),
        "provenance": provenance.describe(),
        "counts": {name: count(config) for name, config in CONFIGS.items()},
    }
    before = json.loads(options.before.read_text()) if options.before else None
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "host-syncs.json").write_text(json.dumps({**figures, "before": before}, indent=1) + "\n")
    (options.output / "host-syncs.md").write_text(render(figures, before))


if __name__ == "__main__":
    main()
