"""Makes other choices from the features of all tokens, without a server: `python choose.py vidcom2-0.06 random-0.12`.

In layer 0 nothing has yet looked from one token to another, so a method that drops tokens hands out a part of all:
what `collect.py` would get from a server, by the same methods.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from clips import GRID, make_clip
from collect import ALL, ball_share, config_of, seeds_of

from vllm_prune.budget import plan_counts
from vllm_prune.config import PruneConfig
from vllm_prune.methods import VideoTokens, create


def choose(tokens: torch.Tensor, config: PruneConfig) -> torch.Tensor:
    """Indices of the tokens that a method keeps of one clip, rising, [K]. tokens: [T * H * W, C]."""
    if config.method is None:
        raise ValueError("no method to choose by")
    method = create(config.method, **config.params)
    budget = plan_counts(config, len(tokens)).kept
    assignment = method.assign(VideoTokens.from_features(tokens, GRID), budget)
    return assignment.anchor.sort().values


def choose_all(folder: Path, part: str, choice: str) -> dict[str, np.ndarray]:
    """What `collect` gives, from the file of all tokens."""
    whole = np.load(folder / f"{part}-{ALL}.npz")
    tokens, config = whole["tokens"], PruneConfig.parse(config_of(choice))
    kept = torch.stack([choose(torch.from_numpy(each).float(), config) for each in tokens]).numpy()
    places = np.stack(np.unravel_index(kept, GRID), axis=-1)
    clips = zip(seeds_of(part, len(kept)), places, strict=True)
    return {
        "tokens": np.take_along_axis(tokens, kept[..., None], axis=1),
        "cells": ((places + 0.5) / GRID).astype(np.float32),
        "mask": np.ones(kept.shape, bool),
        "paths": whole["paths"],
        "ball": np.stack([ball_share(make_clip(seed), torch.from_numpy(cells), GRID) for seed, cells in clips]),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("choices", nargs="+", metavar="choice", help="METHOD-SHARE, of a method that drops tokens")
    parser.add_argument("--folder", type=Path, default=Path("features"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for choice in args.choices:
        for part in ("test", "train"):
            found = choose_all(args.folder, part, choice)
            np.savez(args.folder / f"{part}-{choice}.npz", **found)
            print(part, choice, found["tokens"].shape, f"{found['ball'].mean():.0%} of the ball's cells", flush=True)


if __name__ == "__main__":
    main()
