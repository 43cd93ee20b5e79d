"""Trains policies on what `collect.py` wrote: `python train.py all vidcom2-0.12 --seeds 3`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from collect import CHOICES
from policy import TRAIN_STEPS, TrajectoryPolicy, make_scheduler, to_model

LEVELS = 4
"""Noise levels that each clip of a batch is trained at: what is remembered of it serves them all."""
RATE = 4e-3
"""Of learning, at its highest."""


def load_clips(file: Path) -> dict[str, torch.Tensor]:
    """tokens [N, K, C] float16, cells [N, K, 3], mask [N, K], paths [N, HORIZON, 2]."""
    return {name: torch.from_numpy(value) for name, value in np.load(file).items()}


def policy_file(folder: Path, choice: str, seed: int) -> Path:
    """Where a trained policy lies."""
    return folder / f"policy-{choice}-{seed}.pt"


def train(file: Path, steps: int, seed: int, batch: int = 32) -> TrajectoryPolicy:
    """A trained policy; prints the loss on the way."""
    torch.manual_seed(seed)
    data = load_clips(file)
    policy, scheduler = TrajectoryPolicy(data["tokens"].shape[2]), make_scheduler(TRAIN_STEPS)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.05)
    begin, losses = time.monotonic(), []
    for step in range(steps):
        pick = torch.randint(len(data["paths"]), (batch,))
        memory = policy.remember(data["tokens"][pick].float(), data["cells"][pick], data["mask"][pick])
        memory = memory.repeat_interleave(LEVELS, dim=0)
        clean = to_model(data["paths"][pick]).repeat_interleave(LEVELS, dim=0)
        level, noise = torch.randint(TRAIN_STEPS, (len(clean),)), torch.randn_like(clean)
        found = policy(scheduler.add_noise(clean, noise, level), level, memory)
        loss = (found - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 200 == 0:
            print(f"step {step + 1}: loss {np.mean(losses[-200:]):.4f}, {time.monotonic() - begin:.0f} s", flush=True)
    return policy.eval()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("choices", nargs="*", default=list(CHOICES), metavar="choice", help="as collect.py has them")
    parser.add_argument("--folder", type=Path, default=Path("features"))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seeds", type=int, default=1, help="policies of each choice")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; the policy is too small for more")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for choice in args.choices:
        for seed in range(args.seeds):
            print(choice, "seed", seed, flush=True)
            policy = train(args.folder / f"train-{choice}.npz", args.steps, seed)
            torch.save(policy.state_dict(), policy_file(args.folder, choice, seed))


if __name__ == "__main__":
    main()
