"""Inputs for the tests of methods."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from vllm_prune.methods import Assignment, Method, VideoTokens

EXTENTS = st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(1, 4))
SEEDS = st.integers(0, 2**32 - 1)


def noise(seed: int, *shape: int) -> torch.Tensor:
    """Gaussian noise that depends on nothing but its arguments."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_video(seed: int, grid_thw: tuple[int, int, int], channels: int = 6) -> VideoTokens:
    """A video of pure noise."""
    frames, height, width = grid_thw
    return VideoTokens.from_features(noise(seed, frames * height * width, channels), grid_thw)


def mixed_video(seed: int, grid_thw: tuple[int, int, int], channels: int = 6) -> VideoTokens:
    """A video like a real one: half of the cells stand still, some tokens are duplicates, some are zero."""
    frames, height, width = grid_thw
    cells = height * width
    features = noise(seed, frames, cells, channels)
    still = noise(seed + 1, cells) > 0
    features[:, still] = features[:1, still] + 0.01 * features[:, still]
    features = features.flatten(0, 1)
    features[noise(seed + 2, frames * cells) > 1.5] = features[0].clone()
    features[noise(seed + 3, frames * cells) > 2] = 0
    return VideoTokens.from_features(features, grid_thw)


def assign(method: Method, tokens: VideoTokens, budget: int) -> Assignment:
    """What the method chooses; one that needs a relevance gets the first channel."""
    if getattr(method, "relevance", "unused") in ("required", "encoder"):
        return method.assign(tokens, budget, relevance=tokens.features[:, 0].float())
    return method.assign(tokens, budget)


def budgets_of(num_tokens: int) -> list[int]:
    """Budgets worth trying: the extremes, their neighbours and a few between."""
    wanted = {1, 2, 3, num_tokens // 4, num_tokens // 2, num_tokens - num_tokens // 4, num_tokens - 1, num_tokens}
    return sorted(budget for budget in wanted if 1 <= budget <= num_tokens)
