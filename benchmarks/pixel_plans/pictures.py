"""Pictures of the plans of real clips, which need no model: what is encoded, and what stands in for the rest."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.pixel_plans.calibration import describe_frames
from vllm_prune.bench.clips import real_clips
from vllm_prune.bench.throughput.workload import read_clip
from vllm_prune.config import PruneConfig
from vllm_prune.methods.base import Assignment
from vllm_prune.methods.still_cells import plan_runs
from vllm_prune.serving.worker.query_free import over_all_cells
from vllm_prune.show.sheet import SheetOptions, save_sheet
from vllm_prune.show.story import Frames, Panel, Story, make_panel
from vllm_prune.show.trace_file import TracedVideo

FRAMES, CELL, HEIGHT = 64, 28, 224
COLUMNS = 6


def draw(folder: Path, tau: float = 0.8) -> dict[str, float]:
    """Writes `plan-NAME.png` for every real clip to `folder`; the share encoded of each."""
    shares = {}
    folder.mkdir(parents=True, exist_ok=True)
    for file, path in real_clips().items():
        frames = read_clip(path)
        chosen = np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)
        height, width = frames[0].shape[:2]
        size = (round(HEIGHT * width / height / CELL) * CELL, HEIGHT)
        scaled = np.stack([cv2.resize(frames[i], size, interpolation=cv2.INTER_AREA)[:, :, ::-1] for i in chosen])
        panel = plan_panel(scaled, tau)
        seconds = chosen / cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS)
        story = Story(Frames(scaled, seconds, file), None, [panel])
        save_sheet(story, folder / f"plan-{path.stem}.png", SheetOptions(width=1200, columns=COLUMNS))
        shares[file] = panel.kept_share
    return shares


def plan_panel(frames: np.ndarray, tau: float) -> Panel:
    """What becomes of the cells of frames [T, H, W, 3]."""
    cells = describe_frames(frames)
    plan = plan_runs(cells, tau)
    grid = (frames.shape[0] // 2, frames.shape[1] // CELL, frames.shape[2] // CELL)
    encoded = plan.encoded.flatten().nonzero().squeeze(1)
    whole = over_all_cells(Assignment.identity(len(encoded)), encoded, grid)
    config = PruneConfig.parse({"stage1": {"where": "processor", "tau": tau, "cluster_ratio": 1.0}})
    kept = torch.arange(len(encoded)).numpy()
    counts = (plan.encoded.numel(), len(encoded))
    video = TracedVideo(grid, config, counts, whole.slot.numpy(), whole.anchor.numpy(), kept, (), {}, None)
    return make_panel(f"cells encoded at tau {tau:g}", video)
