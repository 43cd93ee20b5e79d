"""Error of predicted paths by share of kept tokens and denoising steps: `python error.py --keep 1.0 0.12`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from clips import SIDE
from policy import TrajectoryPolicy, make_scheduler, to_frame

STEPS = (100, 10, 5)


@torch.inference_mode()
def denoise(policy: TrajectoryPolicy, memory: torch.Tensor, steps: int, generator: torch.Generator) -> torch.Tensor:
    """Paths [B, HORIZON, 2] in frame sides, from noise."""
    scheduler = make_scheduler(steps)
    path = torch.randn(len(memory), *policy.place.shape[:1], 2, generator=generator).to(memory.dtype)
    for level in scheduler.timesteps:
        clean = policy(path, level.expand(len(path)), memory)
        path = scheduler.step(clean, level, path, generator=generator).prev_sample
    return to_frame(path)


def load(folder: Path, keep: float) -> tuple[TrajectoryPolicy, dict[str, torch.Tensor]]:
    """The policy trained at a share of kept tokens, and the clips to test it on."""
    data = {name: torch.from_numpy(value).float() for name, value in np.load(folder / f"test-{keep:g}.npz").items()}
    policy = TrajectoryPolicy(data["tokens"].shape[2])
    policy.load_state_dict(torch.load(folder / f"policy-{keep:g}.pt"))
    return policy.eval(), data


def mean_error(path: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
    """Mean distance in pixels, and its standard error over clips."""
    distance = (path - truth).norm(dim=2).mean(dim=1) * SIDE
    return float(distance.mean()), float(distance.std() / len(distance) ** 0.5)


def measure(folder: Path, keep: float, draws: int) -> list[dict[str, float]]:
    """A line for each number of steps; each clip gets the mean of `draws` errors."""
    policy, data = load(folder, keep)
    with torch.inference_mode():
        memory = policy.remember(data["tokens"], data["cells"])
    lines = []
    for steps in STEPS:
        generator = torch.Generator().manual_seed(0)
        found = [mean_error(denoise(policy, memory, steps, generator), data["paths"]) for _ in range(draws)]
        error, spread = np.mean(found, axis=0)
        lines.append({"keep": keep, "tokens": memory.shape[1], "steps": steps, "pixels": error, "se": spread})
    still = data["paths"].mean(dim=(0, 1), keepdim=True).expand_as(data["paths"])
    lines.append({"keep": keep, "tokens": 0, "steps": 0, "pixels": mean_error(still, data["paths"])[0], "se": 0.0})
    return lines


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("features"))
    parser.add_argument("--keep", type=float, nargs="+", default=[1.0, 0.25, 0.12])
    parser.add_argument("--draws", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = [line for keep in args.keep for line in measure(args.folder, keep, args.draws)]
    for line in lines:
        what = f"{line['tokens']:.0f} tokens, {line['steps']:.0f} steps" if line["steps"] else "mean of all paths"
        print(f"keep {line['keep']:g}, {what}: {line['pixels']:.2f} ± {line['se']:.2f} pixels")
    (args.folder / "error.json").write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
