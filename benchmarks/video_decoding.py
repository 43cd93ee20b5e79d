"""What it costs to decode in a process of its own: one clip after another, in turn there and in this process.

    python -m benchmarks.video_decoding [--repeats 30] [--size 448] -o OUTDIR

Each pair decodes the same bytes both ways, the first of the two by turns. Preprocessing is what Qwen2.5-VL's video
processor then does to the frames; it and decoding here are what the overhead is a share of.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import psutil

from benchmarks.ending import exit_from

LOADER = "qwen2_vl"


def main(arguments: list[str] | None = None) -> None:
    """Writes video-decoding.json and video-decoding.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30, help="pairs a clip (default: %(default)s)")
    parser.add_argument("--size", type=int, default=448, help="side of the made clip's frames (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args(arguments)

    from vllm_prune.bench.throughput.provenance import describe, describe_lines

    place = describe()
    rows = [measure(name, data, args.repeats) for name, data in clips(args.size).items()]
    command = shlex.join(["python", "-m", "benchmarks.video_decoding", *(arguments or sys.argv[1:])])
    result = {"command": command, "place": place, "repeats": args.repeats, "rows": rows}
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "video-decoding.json").write_text(json.dumps(result, indent=1) + "\n")
    lines = [f"- {line}" for line in (f"Command: `{command}`", *describe_lines(place))]
    (args.output / "video-decoding.md").write_text("\n".join([render(rows, args.repeats), *lines]) + "\n")
    print(render(rows, args.repeats))


def clips(size: int) -> dict[str, bytes]:
    """Real clips and a long made one, by name."""
    from vllm_prune.bench.clips import real_clips

    return {name: path.read_bytes() for name, path in real_clips().items()} | {f"made, {size}x{size}": made(size)}


def made(size: int, seconds: int = 20, fps: int = 30) -> bytes:
    """A moving gradient with noise, as MPEG-4."""
    import tempfile

    rng = np.random.default_rng(0)
    noise = rng.integers(0, 40, (size, size, 3), np.uint8)
    ramp = np.linspace(0, 200, size, dtype=np.uint8)[None, :, None]
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "made.mp4"))
        writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"mp4v"), fps, (size, size))
        for t in range(seconds * fps):
            writer.write(np.roll(noise + ramp, 3 * t, axis=1))
        writer.release()
        return Path(path).read_bytes()


def measure(name: str, data: bytes, repeats: int) -> dict[str, Any]:
    """Milliseconds of a clip's decoding both ways, and of its preprocessing."""
    from vllm_prune.patches import apply_all

    apply_all()
    from vllm.multimodal.video import VIDEO_LOADER_REGISTRY
    from vllm.multimodal.video_decoders import VideoTargetMetadata, opencv

    loader, target = VIDEO_LOADER_REGISTRY.load(LOADER), VideoTargetMetadata(-1, 2, 300)
    there, here = opencv.decode_opencv, opencv.decode_opencv.__wrapped__
    ways = {"here": lambda: here(loader, data, target, {}), "there": lambda: there(loader, data, target, {})}
    frames = ways["there"]()[0]  # the process has started
    assert np.array_equal(frames, ways["here"]()[0])
    spent: dict[str, list[Spent]] = {"here": [], "there": []}
    for repeat in range(repeats):
        for way in sorted(ways, reverse=repeat % 2 == 1):
            spent[way].append(timed(ways[way]))
    preprocess = video_processor()
    spent["preprocessing"] = [timed(lambda: preprocess(frames)) for _ in range(max(3, repeats // 5))]
    pairs = list(zip(spent["here"], spent["there"], strict=True))
    spent["more"] = [Spent(there.cpu - here.cpu, there.wall - here.wall) for here, there in pairs]
    mean = {name: statistics.mean(one.cpu for one in values) for name, values in spent.items()}
    return {
        "clip": name,
        "frames": list(frames.shape),
        "cpu_ms": {name: summary([one.cpu for one in values]) for name, values in spent.items()},
        "wall_ms": {name: summary([one.wall for one in values]) for name, values in spent.items()},
        "share": mean["more"] / (mean["here"] + mean["preprocessing"]),
    }


def video_processor() -> Callable[[np.ndarray], Any]:
    """Qwen2.5-VL's, as vLLM calls it on frames that are sampled already."""
    from transformers import AutoProcessor

    from vllm_prune.embedded import model_path

    processor = AutoProcessor.from_pretrained(str(model_path())).video_processor
    return lambda frames: processor(videos=[frames], do_sample_frames=False, return_tensors="pt")


class Spent(NamedTuple):
    """Milliseconds."""

    cpu: float
    """Of all threads of this process and of the decoders."""
    wall: float


def timed(function: Callable[[], Any]) -> Spent:
    """What a call takes."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    function()
    return Spent(1000 * (cpu_seconds() - cpu), 1000 * (time.perf_counter() - wall))


def cpu_seconds() -> float:
    """Spent so far by this process and its children that are alive."""
    own = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (own, *own.children()))


def summary(values: list[float]) -> dict[str, float]:
    """Mean, standard error and median."""
    error = statistics.stdev(values) / len(values) ** 0.5
    return {"mean": statistics.mean(values), "standard_error": error, "median": statistics.median(values)}


def render(rows: list[dict[str, Any]], repeats: int) -> str:
    """The table."""
    columns = ("here", "there", "more", "preprocessing")
    lines = [
        "# Decoding in a process of its own",
        "",
        f"CPU milliseconds a clip, mean ± standard error over {repeats} pairs. CPU time, of the server's and the "
        "decoder's threads, depends less on what else the machine does than the time on the clock, of which the last "
        "column has the median of the differences. The share is of decoding in the server and preprocessing together.",
        "",
        "| clip | frames taken | decoded in the server | in a process of its own | more | preprocessing | share | "
        "on the clock, more |",
        "| :-- | :-- | --: | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        cpu = [row["cpu_ms"][column] for column in columns]
        cells = [f"{one['mean']:.1f} ± {one['standard_error']:.1f}" for one in cpu]
        number, height, width, _ = row["frames"]
        cells += [f"{row['share']:+.1%}", f"{row['wall_ms']['more']['median']:.1f}"]
        lines.append(" | ".join([f"| {row['clip']}", f"{number} of {width}x{height}", *cells]) + " |")
    return "\n".join([*lines, "", "## How it was measured", ""])


if __name__ == "__main__":
    exit_from("benchmarks.video_decoding", main)
