"""What `tau` means on pixels: share of cells encoded, for clips with one disturbance at a time and for real ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

TAUS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
REAL_FRAMES = 64
REAL_SIZE = (336, 224)


def measure(clips: int) -> dict[str, Any]:
    """Share of cells encoded by clip and `tau`, for both ways of comparing."""
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for name, videos in _groups(clips):
        cells = [describe_frames(video) for video in videos]
        rows[name] = {
            still: {str(tau): float(np.mean([_share(own, still, tau) for own in cells])) for tau in TAUS}
            for still in ("runs", "segments")
        }
    return {"clips": clips, "real_frames": REAL_FRAMES, "real_size": list(REAL_SIZE), "rows": rows}


def _groups(clips: int) -> Iterator[tuple[str, list[np.ndarray]]]:
    from benchmarks.tiny_model.clips import HELD_OUT_SEED, make_clip
    from benchmarks.tiny_model.degrade import named_degradation
    from vllm_prune.bench.clips import real_clips
    from vllm_prune.bench.throughput.workload import read_clip

    for name in ("clean", "noise", "flicker", "drift", "compression", "shake", "pan", "all"):
        made = [make_clip(HELD_OUT_SEED + 900_000 + seed, 32, named_degradation(name)) for seed in range(clips)]
        yield f"rendered, {name}", [clip.frames for clip in made]
    for file, path in real_clips().items():
        frames = read_clip(path)
        chosen = [frames[i] for i in np.linspace(0, len(frames) - 1, REAL_FRAMES).round().astype(int)]
        scaled = [cv2.resize(frame, REAL_SIZE, interpolation=cv2.INTER_AREA) for frame in chosen]
        yield file, [np.stack(scaled)]


def describe_frames(video: np.ndarray) -> Any:
    """What the planner compares, from frames [T, H, W, 3] uint8 that need no resizing."""
    import torch

    from vllm_prune.methods.still_cells import describe_cells

    frames, height, width, _ = video.shape
    t, h, w = frames // 2, height // 28, width // 28
    pixels = torch.from_numpy(np.ascontiguousarray(video)).view(t, 2, h, 2, 14, w, 2, 14, 3)
    patches = pixels.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(t * h * w * 4, -1)
    return describe_cells(patches, (t, h, w), merge=2, patch=14, scale=torch.ones(3), black=torch.zeros(3))


def _share(cells: Any, still: str, tau: float) -> float:
    from vllm_prune.methods.still_cells import plan_runs, plan_segments

    plan = plan_runs(cells, tau) if still == "runs" else plan_segments(cells, tau, 0.25)
    return float(plan.encoded.float().mean())


def markdown(result: dict[str, Any]) -> str:
    """The tables."""
    lines = ["# `tau` on pixels: share of cells encoded", ""]
    for still in ("runs", "segments"):
        lines += [f'`"still": "{still}"`', "", "| clip | " + " | ".join(f"tau {tau}" for tau in TAUS) + " |"]
        lines.append("| :-- |" + " --: |" * len(TAUS))
        for name, row in result["rows"].items():
            lines.append(f"| {name} | " + " | ".join(f"{row[still][str(tau)]:.0%}" for tau in TAUS) + " |")
        lines.append("")
    return "\n".join(lines)
