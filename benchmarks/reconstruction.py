"""How much of a video each method blurs: the squared error of every token against the mean of its slot, on real clips.

    python -m benchmarks.reconstruction [--frames 16 32 64] [--before EARLIER.json] -o OUTDIR

Cells are 28 x 28 pixels, normalised as Qwen's vision encoder gets them and projected to 256 channels by a fixed random
matrix: no encoder, so no accuracy, only geometry. "common" adds to every token a vector as long as the tokens are on
average, times 1.5: tokens of real encoders share such a component, and methods that compare cosines see less
for it. The error is divided by the variance of the video; a dropped token counts against the nearest slot.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from vllm_prune.bench.clips import real_clips
from vllm_prune.bench.throughput import provenance
from vllm_prune.bench.throughput.workload import read_clip
from vllm_prune.methods import Assignment, VideoTokens, create, names, registry

CELLS, CELL, CHANNELS = 14, 28, 256
COMMON = 1.5
KEEP = (0.05, 0.1, 0.25)
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_ROWS_AT_ONCE = 1024


def load_tokens(path: Path, frames: int, common: float) -> VideoTokens:
    """`frames` x 14 x 14 tokens of evenly spaced frames of a clip, [N, 256] float32."""
    clip = read_clip(path)
    side = CELLS * CELL
    chosen = [clip[i] for i in np.linspace(0, len(clip) - 1, frames).round().astype(int)]
    scaled = [cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA)[:, :, ::-1] for frame in chosen]
    pixels = torch.from_numpy(np.stack(scaled)).float() / 255
    pixels = (pixels - torch.tensor(_MEAN)) / torch.tensor(_STD)
    cells = pixels.view(frames, CELLS, CELL, CELLS, CELL, 3).permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(0, 2)
    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(cells.shape[1], CHANNELS, generator=generator) / cells.shape[1] ** 0.5
    features = cells @ projection
    direction = torch.nn.functional.normalize(torch.randn(CHANNELS, generator=generator), dim=0)
    features += common * features.norm(dim=1).mean() * direction
    return VideoTokens.from_features(features, (frames, CELLS, CELLS))


def measure_error(features: Tensor, assignment: Assignment) -> tuple[float, float]:
    """Error of `assignment` as a share of the variance of `features` [N, C], and the largest slot's share of tokens."""
    points = features.double()
    slot = nearest_slots(points, assignment)
    kept = assignment.slot >= 0
    size = assignment.slot[kept].bincount(minlength=assignment.num_slots)
    mean = slot_means(points, assignment)
    error = (points - mean[slot]).square().sum() / (points - points.mean(0)).square().sum()
    return float(error), float(size.max() / len(points))


def slot_means(points: Tensor, assignment: Assignment) -> Tensor:
    """[K, C]: the mean of the members of each slot."""
    kept = assignment.slot >= 0
    slot = assignment.slot[kept]
    total = points.new_zeros(assignment.num_slots, points.shape[1]).index_add_(0, slot, points[kept])
    return total / slot.bincount(minlength=assignment.num_slots)[:, None]


def nearest_slots(points: Tensor, assignment: Assignment) -> Tensor:
    """[N] int64: the slot of each token, for a dropped one that whose mean is nearest."""
    slot = assignment.slot.clone()
    mean = slot_means(points, assignment)
    for rows in (slot < 0).nonzero().squeeze(1).split(_ROWS_AT_ONCE):
        slot[rows] = torch.cdist(points[rows], mean).argmin(1)
    return slot


def measure(frames: Sequence[int], methods: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each clip, length, kind of features and share kept; of each method the error and the largest slot."""
    rows = []
    for clip, path in real_clips().items():
        for length in frames:
            for kind, common in (("pixels", 0.0), ("common", COMMON)):
                tokens = load_tokens(path, length, common)
                for keep in KEEP:
                    budget = round(keep * tokens.num_tokens)
                    found = {
                        name: measure_error(tokens.features, create(name).assign(tokens, budget)) for name in methods
                    }
                    rows.append({"clip": clip, "frames": length, "features": kind, "keep": keep, "methods": found})
    return rows


def render(result: dict[str, Any], before: dict[str, Any] | None) -> str:
    """Tables in Markdown, one for each kind of features; with `before` the earlier error first."""
    lines = ["# Error of reconstruction", "", f"`{result['command']}`", ""]
    lines += ["Squared error of every token against the mean of its slot, as a share of the video's variance; in "]
    lines[-1] += (
        "brackets the largest slot's share of all tokens, where that is 5% or more. No accuracy: only how much "
    )
    lines[-1] += "a slot blurs. `benchmarks/reconstruction.py` says what the tokens are."
    methods = list(result["rows"][0]["methods"])
    for kind in dict.fromkeys(row["features"] for row in result["rows"]):
        lines += [
            "",
            f"## {kind}",
            "",
            f"| clip | frames | kept | {' | '.join(methods)} |",
            "|---" * (3 + len(methods)) + "|",
        ]
        for row in result["rows"]:
            if row["features"] == kind:
                cells = [_cell(row, name, before) for name in methods]
                lines.append(f"| {row['clip']} | {row['frames']} | {row['keep']:.0%} | {' | '.join(cells)} |")
    lines += ["", *(f"- {line}" for line in provenance.describe_lines(result["provenance"]))]
    if before:
        lines += ["", "Before (the figure left of the arrow):", ""]
        lines += [f"- {line}" for line in provenance.describe_lines(before["provenance"])]
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any], name: str, before: dict[str, Any] | None) -> str:
    error, largest = row["methods"][name]
    text = f"{error:.3f}" + (f" ({largest:.0%})" if largest >= 0.05 else "")
    key = ("clip", "frames", "features", "keep")
    for earlier in before["rows"] if before else []:
        if all(earlier[field] == row[field] for field in key) and name in earlier["methods"]:
            was = earlier["methods"][name][0]
            return text if f"{was:.3f}" == f"{error:.3f}" else f"{was:.3f} → {text}"
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes reconstruction.json and reconstruction.md."""
    told = ("required", "encoder")
    without_relevance = [name for name in names() if getattr(registry.load(name), "relevance", "") not in told]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--methods", nargs="+", choices=without_relevance, default=without_relevance, metavar="NAME")
    parser.add_argument("--before", type=Path, help="reconstruction.json of another commit")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the figures")
    options = parser.parse_args(arguments)
    result = {
        "command": " ".join(["python -m benchmarks.reconstruction", *(arguments or sys.argv[1:])]),
        "provenance": provenance.describe(),
        "rows": measure(options.frames, options.methods),
    }
    before = json.loads(options.before.read_text()) if options.before else None
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "reconstruction.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (options.output / "reconstruction.md").write_text(render(result, before), encoding="utf-8")
    print(render(result, before))


if __name__ == "__main__":
    main()
