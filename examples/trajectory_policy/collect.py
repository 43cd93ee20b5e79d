"""Asks a server of features about every clip once, and writes what policies are trained on.

vllm-prune serve embedded --runner pooling --prune baseline --prune-override any --dtype float32 &
python collect.py --url http://localhost:8000

A choice of tokens is "all", or the name of a method and the share that it keeps, as "vidcom2-0.12".
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from clips import Clip, make_clip

from vllm_prune.features import Features, FeaturesClient

ALL = "all"
CHOICES = (ALL, "vidcom2-0.12")
TEST_SEED = 1_000_000
LAYER = 0
"""What enters the language model: rows that have not yet been mixed into answers about a whole clip."""


def config_of(choice: str) -> dict[str, object]:
    """The pruning that a choice of tokens stands for.

    >>> config_of("all"), config_of("vidcom2-0.12")
    ({'preset': 'baseline'}, {'method': 'vidcom2', 'stage1': None, 'keep_ratio': 0.12})
    """
    if choice == ALL:
        return {"preset": "baseline"}
    method, _, share = choice.rpartition("-")
    return {"method": method, "stage1": None, "keep_ratio": float(share)}


def client_of(url: str, choice: str) -> FeaturesClient:
    """A client that asks for a choice of tokens, and remembers no answers."""
    return FeaturesClient(url, config=config_of(choice), layer=LAYER, remember=0)


def cells_of(features: Features) -> np.ndarray:
    """(t, h, w) in shares of the grid, [K, 3] float32."""
    return ((features.cells + 0.5) / torch.tensor(features.grid_thw)).numpy()


def seeds_of(part: str, clips: int) -> range:
    """Of the clips of "train" or "test"."""
    first = {"train": 0, "test": TEST_SEED}[part]
    return range(first, first + clips)


def ball_share(clip: Clip, cells: torch.Tensor, grid: tuple[int, int, int]) -> np.float32:
    """Of the cells with the ball, the share that was kept. `cells`: (t, h, w) of the kept ones, [K, 3]."""
    ball = clip.ball_cells(grid)
    kept = np.zeros_like(ball)
    kept[tuple(cells.T.numpy())] = True
    return np.float32((kept & ball).sum() / ball.sum())


def collect(client: FeaturesClient, seeds: range) -> dict[str, np.ndarray]:
    """Tokens [N, K, C], cells [N, K, 3], mask [N, K], paths [N, HORIZON, 2] and shares of the ball [N] of clips."""

    def one(seed: int) -> dict[str, object]:
        clip = make_clip(seed)
        found = client.get(clip.mp4(), clip.question)
        return {
            "tokens": found.tokens.numpy().astype(np.float16),
            "cells": cells_of(found),
            "mask": found.mask.numpy(),
            "paths": clip.path,
            "ball": ball_share(clip, found.cells[found.mask], found.grid_thw),
        }

    with ThreadPoolExecutor(4) as pool:
        clips = list(pool.map(one, seeds))
    return {name: np.stack([clip[name] for clip in clips]) for name in clips[0]}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("choices", nargs="*", default=[ALL], metavar="choice", help="'all', or METHOD-SHARE")
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--train", type=int, default=1200, help="clips")
    parser.add_argument("--test", type=int, default=200, help="clips")
    parser.add_argument("--out", type=Path, default=Path("features"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for choice in args.choices:
        with client_of(args.url, choice) as client:
            for part, clips in (("test", args.test), ("train", args.train)):
                found = collect(client, seeds_of(part, clips))
                np.savez(args.out / f"{part}-{choice}.npz", **found)
                print(part, choice, found["tokens"].shape, flush=True)


if __name__ == "__main__":
    main()
