"""RESULTS.md and RESULTS.json of the shipped model: ``python -m benchmarks.tiny_model.report --log LOG``."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch

from .clips import CLIP_LENGTHS
from .evaluate import DEFAULT_MODEL, accuracy_table, markdown, packed_answerer

NOISES = ("clean", "noise", "flicker", "drift", "shake", "pan", "compression", "all")


def training_record(log: Path) -> dict:
    """Steps and wall time of a training log, whose lines are JSON."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    last = [line for line in lines if "loss" in line][-1]
    return {"steps": last["step"], "minutes": round(last["seconds"] / 60, 1)}


def main() -> None:
    """Measure the shipped model under every disturbance and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, required=True, help="log of the training run")
    parser.add_argument("--command", default="python -m benchmarks.tiny_model.train", help="what made the model")
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    answerer = packed_answerer(DEFAULT_MODEL)
    results = {
        f"{frames} frames, {noise}": accuracy_table(answerer, args.clips, frames, args.seed, noise)
        for frames in CLIP_LENGTHS
        for noise in NOISES
    }
    record = {
        "training_command": args.command,
        "training_seed": 0,
        "training": training_record(args.log),
        "evaluation": {"clips": args.clips, "seed": args.seed, "backend": "packed forward pass, bf16"},
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "accuracy": results,
    }
    folder = Path(__file__).parent
    (folder / "RESULTS.json").write_text(json.dumps(record, indent=1) + "\n")
    header = (
        "# Accuracy of the embedded model\n\n"
        f"Per cent of right answers ± standard error on {args.clips} held-out clips per row (seed {args.seed}), one-token exact match.\n\n"
        f"- made by `{args.command}`, seed 0: {record['training']['steps']} steps, {record['training']['minutes']} minutes\n"
        f"- measured by `python -m benchmarks.tiny_model.report`; {record['machine']}\n\n"
    )
    (folder / "RESULTS.md").write_text(header + markdown(results) + "\n")
    print(markdown(results))


if __name__ == "__main__":
    main()
