"""`python -m benchmarks.pixel_plans accuracy|costs|pages|preprocessing|calibration|pictures`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ending import exit_from
from vllm_prune.bench.clips import real_clips
from vllm_prune.bench.json_file import write_json
from vllm_prune.bench.throughput.provenance import describe, describe_lines


def main(argv: list[str]) -> int:
    """Measures one thing and writes it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pixel_plans", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    commands = parser.add_subparsers(dest="what", required=True)
    accuracy = commands.add_parser("accuracy", help="of the embedded model, at equal counts")
    accuracy.add_argument("-n", "--clips", type=int, default=3, help="of each kind for each of 3 seeds (default 3)")
    accuracy.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    accuracy.add_argument("--name", default="pixel-accuracy", help="of the result's files")
    costs = commands.add_parser("costs", help="planning, bytes and encoder time, on random weights")
    costs.add_argument("--dims", default="cpu", help="dimensions of the random model (see bench throughput)")
    costs.add_argument("--frames", type=int, default=64)
    costs.add_argument("--size", type=int, nargs=2, default=(336, 224), help="width and height, multiples of 28")
    costs.add_argument("--repeats", type=int, default=5)
    pages = commands.add_parser(
        "pages", help="images: share of the cells encoded, encoder time, TTFT, on random weights"
    )
    pages.add_argument("--dims", default="cpu", help="dimensions of the random model (see bench throughput)")
    pages.add_argument("--repeats", type=int, default=3, help="of the times; 0: shares only")
    clips = commands.add_parser("preprocessing", help="of real clips: decoding, resizing, planning")
    clips.add_argument("--frames", type=int, default=64)
    clips.add_argument("--tokens", type=int, default=96, help="of a frame at the most (default 96)")
    clips.add_argument("--repeats", type=int, default=5)
    calibration = commands.add_parser("calibration", help="share of cells encoded against tau")
    calibration.add_argument("-n", "--clips", type=int, default=20, help="rendered clips of each kind (default 20)")
    pictures = commands.add_parser("pictures", help="of the plans of the real clips")
    pictures.add_argument("--folder", type=Path, default=Path("docs/images"), help="default docs/images")
    args = parser.parse_args(argv)
    if args.what in ("preprocessing", "calibration", "pictures"):
        try:
            real_clips()
        except FileNotFoundError as error:
            print(f"benchmarks.pixel_plans {args.what}: {error}", file=sys.stderr)
            return 1
    command = ["python", "-m", "benchmarks.pixel_plans", *argv]
    place = describe()
    if args.what == "accuracy":
        from benchmarks.pixel_plans.accuracy import run

        run(command, args.output, args.clips, args.resume, args.name)
    elif args.what == "costs":
        from benchmarks.pixel_plans import costs as module

        result = module.measure(args.dims, args.frames, tuple(args.size), args.repeats)
        result["repeats"] = args.repeats
        _write(args.output / "pixel-costs", command, place, result, module.markdown(result))
    elif args.what == "pages":
        from benchmarks.pixel_plans import page_costs as module

        result = module.measure(args.dims, args.repeats)
        _write(args.output / "pixel-pages", command, place, result, module.markdown(result))
    elif args.what == "preprocessing":
        from benchmarks.pixel_plans import preprocessing as module

        result = module.measure(args.frames, args.tokens, args.repeats)
        _write(args.output / "pixel-preprocessing", command, place, result, module.markdown(result))
    elif args.what == "pictures":
        from benchmarks.pixel_plans.pictures import draw

        for name, share in draw(args.folder).items():
            print(f"{name}: {share:.1%} of the cells are encoded")
    else:
        from benchmarks.pixel_plans import calibration as module

        result = module.measure(args.clips)
        _write(args.output / "pixel-calibration", command, place, result, module.markdown(result))
    return 0


def _write(stem: Path, command: Sequence[str], place: Mapping[str, Any], result: Mapping[str, Any], table: str) -> None:
    made = "\n".join(["", f"- Command: `{' '.join(command)}`", *(f"- {line}" for line in describe_lines(place)), ""])
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_json(stem.with_suffix(".json"), {"command": command, **result, "provenance": place})
    stem.with_suffix(".md").write_text(table + made)
    print(table + made)


if __name__ == "__main__":
    exit_from("benchmarks.pixel_plans", lambda: main(sys.argv[1:]))
