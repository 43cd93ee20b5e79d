"""Asks a server of features about every clip once, and writes what a policy is trained on.

vllm-prune serve embedded --runner pooling --prune baseline --prune-override any &
python collect.py --url http://localhost:8000 --keep 1.0 0.25 0.12 --out features/
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from clips import make_clip

from vllm_prune.features import Features, FeaturesClient

QUESTION = "Where does the ball go?"
TEST_SEED = 1_000_000


def config_of(keep: float) -> dict[str, object]:
    """The pruning that keeps a share of a clip's tokens."""
    if keep >= 1:
        return {"preset": "baseline"}
    return {"method": "dart", "stage1": None, "keep_ratio": keep}


def cells_of(features: Features) -> np.ndarray:
    """(t, h, w) in shares of the grid, [K, 3]."""
    return ((features.cells + 0.5) / torch.tensor(features.grid_thw)).numpy()


def collect(client: FeaturesClient, seeds: range) -> dict[str, np.ndarray]:
    """Tokens [N, K, C], cells [N, K, 3] and paths [N, HORIZON, 2] of clips."""

    def one(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        clip = make_clip(seed)
        found = client.get(clip.mp4(), QUESTION)
        return found.tokens.numpy().astype(np.float16), cells_of(found), clip.path

    with ThreadPoolExecutor(4) as pool:
        tokens, cells, paths = zip(*pool.map(one, seeds), strict=True)
    return {"tokens": np.stack(tokens), "cells": np.stack(cells), "paths": np.stack(paths)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--keep", type=float, nargs="+", default=[1.0, 0.25, 0.12])
    parser.add_argument("--train", type=int, default=500, help="clips")
    parser.add_argument("--test", type=int, default=100, help="clips")
    parser.add_argument("--layer", type=int, default=-1)
    parser.add_argument("--out", type=Path, default=Path("features"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for keep in args.keep:
        with FeaturesClient(args.url, config=config_of(keep), layer=args.layer, remember=0) as client:
            for name, seeds in (
                ("train", range(args.train)),
                ("test", range(TEST_SEED, TEST_SEED + args.test)),
            ):
                found = collect(client, seeds)
                np.savez(args.out / f"{name}-{keep:g}.npz", **found)
                print(name, keep, found["tokens"].shape, flush=True)


if __name__ == "__main__":
    main()
