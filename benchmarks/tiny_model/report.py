"""RESULTS.md and RESULTS.json of a shipped model: ``python -m benchmarks.tiny_model.report --log LOG``.

Those of the second model are written by ``--name RESULTS-qwen3-vl --model vllm_prune/embedded/model_qwen3_vl``.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from pathlib import Path

import torch

from .clips import CLIP_LENGTHS
from .evaluate import DEFAULT_MODEL, Answerer, accuracy_table, markdown, packed_answerer

NOISES = ("clean", "noise", "flicker", "drift", "shake", "pan", "compression", "all")
FOLDER = Path(__file__).parent


def last_record(log: Path) -> dict[str, float]:
    """The last line with a loss of a training log, whose lines are JSON."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return next(line for line in reversed(lines) if "loss" in line)


def training_summary(logs: list[Path]) -> str:
    """Steps and wall time over the logs of a run, each of which went on from the one before."""
    records = [last_record(log) for log in logs]
    return f"{records[-1]['step']} steps in {sum(r['seconds'] for r in records) / 60:.0f} minutes"


def measure(answerer: Answerer, clips: int, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Tables for every clip length under every disturbance, and with a further event for every four frames."""
    tables = {}
    for frames in CLIP_LENGTHS:
        for noise in NOISES:
            tables[f"{frames} frames, {noise}"] = accuracy_table(answerer, clips, frames, seed, noise)
        extra = frames // 4
        name = f"{frames} frames, noise, {extra} extra flashes"
        tables[name] = accuracy_table(answerer, clips, frames, seed, "noise", extra)
    return tables


def write_markdown(record: dict, path: Path) -> None:
    """The Markdown of a report's JSON."""
    evaluation = record["evaluation"]
    lines = [
        f"# Accuracy of the {record['model']}",
        "",
        f"Per cent of right answers (exact match) ± standard error on {evaluation['clips']} held-out clips a row.",
        "",
        f"- made by {record['made_by']}",
        f"- {record['training']}, training seed 0, on the same machine busy with other work",
        f"- measured by `{evaluation['command']}`, evaluation seed {evaluation['seed']}",
        f"- {record['machine']}",
        "",
        markdown(record["accuracy"]),
    ]
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Measure a shipped model under every disturbance and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, nargs="+", required=True, help="logs of the training run, in order")
    parser.add_argument("--made-by", default="`python -m benchmarks.tiny_model.train`", help="what made the model")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="its folder")
    parser.add_argument("--title", default="embedded model")
    parser.add_argument("--name", default="RESULTS", help="of the files, without suffix")
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    answerer = packed_answerer(args.model)
    record = {
        "model": args.title,
        "made_by": args.made_by,
        "training": training_summary(args.log),
        "evaluation": {
            "command": shlex.join(["python", "-m", "benchmarks.tiny_model.report", *sys.argv[1:]]),
            "clips": args.clips,
            "seed": args.seed,
            "forward": "packed questions, bf16, vLLM's position rule",
        },
        "machine": f"{platform.machine()}, {args.threads} threads, torch {torch.__version__}",
        "accuracy": measure(answerer, args.clips, args.seed),
    }
    (FOLDER / f"{args.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    write_markdown(record, FOLDER / f"{args.name}.md")
    print(markdown(record["accuracy"]))


if __name__ == "__main__":
    main()
