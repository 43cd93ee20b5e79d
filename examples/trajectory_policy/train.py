"""Trains one policy on what `collect.py` wrote: `python train.py features/train-0.12.npz -o policy-0.12.pt`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from policy import TRAIN_STEPS, TrajectoryPolicy, make_scheduler, to_model


def train(file: Path, steps: int, batch: int = 32, seed: int = 0) -> TrajectoryPolicy:
    """A trained policy; prints the loss on the way."""
    torch.manual_seed(seed)
    data = {name: torch.from_numpy(value).float() for name, value in np.load(file).items()}
    policy, scheduler = TrajectoryPolicy(data["tokens"].shape[2]), make_scheduler(TRAIN_STEPS)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.05)
    begin, losses = time.monotonic(), []
    for step in range(steps):
        pick = torch.randint(len(data["paths"]), (batch,))
        clean = to_model(data["paths"][pick])
        level, noise = torch.randint(TRAIN_STEPS, (batch,)), torch.randn_like(clean)
        memory = policy.remember(data["tokens"][pick], data["cells"][pick])
        found = policy(scheduler.add_noise(clean, noise, level), level, memory)
        loss = (found - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 500 == 0:
            print(f"step {step + 1}: loss {np.mean(losses[-500:]):.4f}, {time.monotonic() - begin:.0f} s", flush=True)
    return policy.eval()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; the policy is too small for more")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.save(train(args.file, args.steps).state_dict(), args.out)


if __name__ == "__main__":
    main()
