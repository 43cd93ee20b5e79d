"""A diffusion policy: a small transformer decoder that denoises a path, with cross-attention to features of a video.

After Chi et al., "Diffusion Policy: Visuomotor Policy Learning via Action Diffusion" (RSS 2023); the schedulers are
those of `diffusers`.
"""

from __future__ import annotations

import math

import torch
from clips import HORIZON
from diffusers import DDIMScheduler, DDPMScheduler
from torch import nn

TRAIN_STEPS = 100
"""Noise levels."""
_WIDTH, _HEADS, _LAYERS = 64, 4, 2
_ROWS = 16
"""That the decoder attends to, however many tokens there are."""
_OCTAVES = 4
"""Of sines and cosines of a cell's place."""


def _layers() -> nn.TransformerDecoder:
    layer = nn.TransformerDecoderLayer(_WIDTH, _HEADS, 4 * _WIDTH, 0.1, "gelu", batch_first=True, norm_first=True)
    return nn.TransformerDecoder(layer, _LAYERS, nn.LayerNorm(_WIDTH))


class TrajectoryPolicy(nn.Module):
    """Predicts the clean path from a noisy one."""

    def __init__(self, feature_size: int) -> None:
        """`feature_size`: C, of a token of the video."""
        super().__init__()
        self.norm = nn.LayerNorm(feature_size)
        self.of_feature = nn.Linear(feature_size, _WIDTH)
        self.of_cell = nn.Sequential(nn.Linear(6 * _OCTAVES, _WIDTH), nn.GELU(), nn.Linear(_WIDTH, _WIDTH))
        self.rows = nn.Parameter(torch.randn(_ROWS, _WIDTH))
        self.resampler = _layers()
        self.of_point = nn.Linear(2, _WIDTH)
        self.place = nn.Parameter(torch.randn(HORIZON, _WIDTH))
        self.level = nn.Embedding(TRAIN_STEPS, _WIDTH)
        self.decoder = _layers()
        self.to_point = nn.Linear(_WIDTH, 2)

    def remember(self, tokens: torch.Tensor, cells: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What the decoder attends to, [B, R, D]: needed once for an observation.

        Args:
            tokens: Features [B, K, C].
            cells: (t, h, w) of each, in shares of the grid, [B, K, 3].
            mask: Which of them are tokens, and no padding, [B, K] bool.
        """
        seen = self.of_feature(self.norm(tokens)) + self.of_cell(_waves(cells))
        rows = self.rows.expand(len(tokens), -1, -1)
        return self.resampler(rows, seen, memory_key_padding_mask=~mask)

    def forward(self, path: torch.Tensor, level: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """The clean path [B, HORIZON, 2] behind a noisy one.

        Args:
            path: [B, HORIZON, 2], in -1..1.
            level: Noise level of each, [B].
            memory: What `remember` gave.
        """
        points = self.of_point(path) + self.place + self.level(level)[:, None]
        return self.to_point(self.decoder(points, memory))


def _waves(cells: torch.Tensor) -> torch.Tensor:
    """Sines and cosines of places, [..., 3] to [..., 6 * _OCTAVES]."""
    turns = cells[..., None] * math.pi * 2.0 ** torch.arange(_OCTAVES, dtype=cells.dtype)
    return torch.cat((turns.sin(), turns.cos()), dim=-1).flatten(-2)


def make_scheduler(steps: int) -> DDPMScheduler | DDIMScheduler:
    """Of `diffusers`, set to `steps` steps: DDPM for all levels, DDIM for fewer."""
    kind = DDPMScheduler if steps == TRAIN_STEPS else DDIMScheduler
    scheduler = kind(
        num_train_timesteps=TRAIN_STEPS, beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=True
    )
    scheduler.set_timesteps(steps)
    return scheduler


def to_model(path: torch.Tensor) -> torch.Tensor:
    """Positions in frame sides (0..1) as the policy has them (-1..1)."""
    return 2 * path - 1


def to_frame(path: torch.Tensor) -> torch.Tensor:
    """Inverse of `to_model`."""
    return (path + 1) / 2
