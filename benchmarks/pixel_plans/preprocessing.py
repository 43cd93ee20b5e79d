"""Planning beside all that is done to a real clip before the engine: decoding, resizing, cutting into patches."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.pixel_plans.costs import PIXELS, Bench, medians
from vllm_prune.bench.clips import real_clips
from vllm_prune.bench.throughput.model_dims import PIXELS_PER_TOKEN
from vllm_prune.bench.throughput.report import table

FEWEST_TOKENS = 16  # of a frame: small clips are not enlarged


def measure(frames: int, tokens: int, repeats: int) -> dict[str, Any]:
    """Medians for every real clip, `frames` of it, each resized to at most `tokens` tokens."""
    bench = Bench("smoke")
    size = {"shortest_edge": FEWEST_TOKENS * PIXELS_PER_TOKEN, "longest_edge": tokens * PIXELS_PER_TOKEN}
    rows = {}
    for name, path in real_clips().items():
        samples = [_sample(bench, path, frames, size) for _ in range(repeats + 1)][1:]  # the first warms up
        row = medians(samples)
        row["plan_of_preprocessing"] = row["plan_s"] / row["preprocess_s"]
        row["plan_of_all"] = row["plan_s"] / (row["decode_s"] + row["processor_s"])
        rows[name] = row
    return {"frames": frames, "tokens_per_frame": tokens, "repeats": repeats, "rows": rows}


def _sample(bench: Bench, path: Path, frames: int, size: dict[str, int]) -> dict[str, float]:
    from vllm.multimodal.media import ImageMediaIO, VideoMediaIO

    begin = time.perf_counter()
    video, metadata = VideoMediaIO(ImageMediaIO(), num_frames=frames).load_bytes(path.read_bytes()).media
    decode = time.perf_counter() - begin
    sample = bench.ask(video, PIXELS, size=size)
    width, height = video.shape[2], video.shape[1]
    return {
        "width": width,
        "height": height,
        "clip_frames": metadata["total_num_frames"],
        "decode_s": decode,
        **{key: sample[key] for key in ("preprocess_s", "processor_s", "plan_s", "sent_bytes")},
    }


def markdown(result: dict[str, Any]) -> str:
    """The table."""
    header = ["clip", "size", "decoding, ms", "preprocessing, ms", "plan, ms", "of preprocessing"]
    rows = [
        [
            name,
            f"{row['width']:.0f} x {row['height']:.0f}",
            *(f"{1e3 * row[key]:.0f}" for key in ("decode_s", "preprocess_s")),
            f"{1e3 * row['plan_s']:.1f}",
            f"{row['plan_of_preprocessing']:.1%}",
            f"{row['plan_of_all']:.1%}",
        ]
        for name, row in result["rows"].items()
    ]
    return (
        "# Stage 1 on pixels: planning beside decoding and preprocessing\n\n"
        f"{result['frames']} frames of each clip, resized by the Hugging Face processor to at most "
        f"{result['tokens_per_frame']} tokens each; one request at a time, medians of {result['repeats']}.\n\n"
        f"{table([*header, 'of all before the engine'], rows)}\n"
    )
