"""Parts of a selector that reads with attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PLACE_CHANNELS = 32
_TIME_WAVES, _TIME_LONGEST = 8, 64.0  # temporal grid steps
_SIDE_WAVES, _SIDE_CELLS = 4, 16.0


class AttentionBlock(nn.Module):
    """Attention of `rows` to `context`, then an MLP; normalised before each."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_rows, self.norm_context, self.norm_mlp = (nn.LayerNorm(hidden) for _ in range(3))
        self.query, self.key_value = nn.Linear(hidden, hidden), nn.Linear(hidden, 2 * hidden)
        self.out = nn.Linear(hidden, hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, 3 * hidden), nn.GELU(), nn.Linear(3 * hidden, hidden))

    def forward(self, rows: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """[B, R, D] of `rows` [B, R, D] and `context` [B, S, D]; `mask` [B, 1, 1, S] is true where one may look."""
        batch, count, hidden = rows.shape
        query = self.query(self.norm_rows(rows)).view(batch, count, self.heads, -1).transpose(1, 2)
        both = self.key_value(self.norm_context(context)).view(batch, context.shape[1], 2, self.heads, -1)
        key, value = both.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        rows = rows + self.out(seen.transpose(1, 2).reshape(batch, count, hidden))
        return rows + self.mlp(self.norm_mlp(rows))


def sinusoids(positions: Tensor, waves: int, longest: float) -> Tensor:
    """[..., 2 * waves] sines and cosines of `positions`, of wavelengths from 4 to `longest`."""
    steps = torch.arange(waves, device=positions.device) / max(waves - 1, 1)
    angle = positions.float()[..., None] * (2 * math.pi / (4 * (longest / 4) ** steps))
    return torch.cat([angle.sin(), angle.cos()], -1)


def place_code(places: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """[N, PLACE_CHANNELS] of grid cells `places` [N, 3] (t, h, w) in a video of extent `grid`.

    Time counts in steps; height and width as fractions of the picture, so that its size does not matter.
    """
    time = sinusoids(places[:, 0], _TIME_WAVES, _TIME_LONGEST)
    sides = [
        sinusoids((places[:, axis] + 0.5) * (_SIDE_CELLS / grid[axis]), _SIDE_WAVES, 4 * _SIDE_CELLS) for axis in (1, 2)
    ]
    return torch.cat([time, *sides], -1)
