"""`vllm-prune bench methods`: its options, and what it does with them."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vllm_prune.bench.methods.approximations import compare
from vllm_prune.bench.methods.report import draw, markdown
from vllm_prune.bench.methods.runner import Size, make_cases, make_video, run_cases
from vllm_prune.bench.needs import draw_if_possible, suffixes
from vllm_prune.bench.options import positive
from vllm_prune.bench.running import Endings, run_planned
from vllm_prune.bench.throughput import provenance
from vllm_prune.cli.secrets import masked
from vllm_prune.methods import names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vllm-prune bench methods`."""
    parser.add_argument("--frames", type=positive, default=64, help="frames of the video (default 64)")
    parser.add_argument("--tokens-per-frame", type=positive, default=196, metavar="N", help="default 196")
    parser.add_argument("--keep", type=positive, default=98, metavar="N", help="tokens kept of a frame (default 98)")
    parser.add_argument("--dim", type=positive, default=4096, metavar="N", help="channels (default 4096)")
    parser.add_argument("--still", type=_share, default=0.0, metavar="X", help="share of the cells that stand still")
    parser.add_argument("--methods", nargs="+", choices=names(), default=names(), metavar="NAME", help="default: all")
    parser.add_argument("--sweep-frames", nargs="+", type=positive, default=[], metavar="N", help="time these as well")
    parser.add_argument("--approximations", action="store_true", help="log-determinants of the modes of dpp as well")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--threads", type=positive, help="on the CPU (default: PyTorch's)")
    parser.add_argument("--repeats", type=positive, default=5, help="timed runs of each case (default 5)")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor time of this process, for --device cpu --threads 1 on a machine that is busy otherwise",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=Path("bench-results"), metavar="DIR", help="for results")
    parser.add_argument("--name", default="methods", help="name of the result files, without suffix")


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: must be from 0 to 1")
    return value


def run(args: argparse.Namespace) -> int:
    """Measure, write the results, and return the exit status."""
    if args.keep > args.tokens_per_frame:
        print(f"--keep {args.keep}: must be at most --tokens-per-frame {args.tokens_per_frame}", file=sys.stderr)
        return 2
    if args.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: this PyTorch sees no GPU; use --device cpu", file=sys.stderr)
        return 2
    if args.clock == "cpu" and (args.device != "cpu" or args.threads != 1):
        print("--clock cpu: give --device cpu --threads 1 as well", file=sys.stderr)
        return 2
    if args.threads:
        torch.set_num_threads(args.threads)
    results = _about(args)
    stem = args.output / args.name
    endings = Endings(name="methods", interrupted=f"what was measured before, if anything, is in {stem}{suffixes()}")
    status = run_planned(lambda: results, partial(_measure_all, args), endings)
    if results["main"]:
        _write(results, stem)
    if status == 0:
        print(markdown(results))
        print(f"results: {stem}{suffixes()}")
    return status


def _write(results: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown(results), encoding="utf-8")
    draw_if_possible(draw, results, path.with_suffix(".png"))


def _about(args: argparse.Namespace) -> dict[str, Any]:
    """The results before anything is measured."""
    size = _size(args, args.frames)
    return {
        "command": shlex.join(["vllm-prune", *masked(sys.argv[1:])]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "provenance": provenance.describe(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "CPU",
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "repeats": args.repeats,
        "clock": args.clock,
        "still": args.still,
        "seed": args.seed,
        "size": {**asdict(size), "tokens": size.tokens},
        "main": [],
        "sweep": [],
        "approximations": [],
    }


def _measure_all(args: argparse.Namespace, results: dict[str, Any]) -> None:
    """Fills `results` row by row, so that an interrupted run keeps what it has."""
    size = _size(args, args.frames)
    with _progress() as begin, torch.inference_mode():
        for row in _measure_size(args, size, True, begin):
            results["main"].append(row)
        for frames in sorted(args.sweep_frames):
            for row in _measure_size(args, _size(args, frames), False, begin):
                results["sweep"].append(row)
    if args.approximations:
        results["approximations"] = list(compare(size, args.still, args.seed))


def _size(args: argparse.Namespace, frames: int) -> Size:
    rows = next(rows for rows in range(int(args.tokens_per_frame**0.5), 0, -1) if args.tokens_per_frame % rows == 0)
    return Size(frames, rows, args.tokens_per_frame // rows, args.keep, args.dim)


def _measure_size(args: argparse.Namespace, size: Size, compare: bool, begin: Any) -> Iterator[dict[str, Any]]:
    tokens = make_video(size, args.device, args.dtype, args.still, args.seed)
    cases = list(make_cases(tokens, size, args.methods, compare))
    return run_cases(tokens, cases, args.repeats, args.clock, begin)


@contextmanager
def _progress() -> Iterator[Any]:
    """A bar that counts cases and names the current one; how many there will be depends on the sizes."""
    from tqdm import tqdm

    with tqdm(unit="case", dynamic_ncols=True) as bar:

        def begin(case: str) -> None:
            bar.set_postfix_str(case)
            bar.update()

        yield begin
