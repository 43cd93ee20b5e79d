"""The networks.

`joint` is a small transformer over visual states and the question's embeddings; `match` does without layers: learned
projections and a maximum over the question's words, as in late interaction (Khattab and Zaharia, ColBERT, SIGIR 2020).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vllm_prune.selector.blocks import PLACE_CHANNELS, AttentionBlock, place_code, sinusoids
from vllm_prune.selector.config import SelectorConfig

_CHUNK_NUMBERS = 1 << 22  # float32 copies of tokens, and products with words, are made in pieces of 16 MiB
_LARGEST_SCALE = 100.0
_WORD_LONGEST = 64.0


class Selector(nn.Module):
    """Scores the visual tokens of one video for one question. Deterministic; no dropout."""

    def __init__(self, config: SelectorConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden
        self.video_norm, self.text_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.video_in, self.text_in = nn.Linear(config.width, hidden), nn.Linear(config.width, hidden)
        if config.kind == "match":
            self.log_scale, self.bias = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.zeros(()))
            return
        self.place_in = nn.Linear(PLACE_CHANNELS, hidden, bias=False)
        self.kind_of_row = nn.Parameter(torch.zeros(2, hidden))
        self.blocks = nn.ModuleList(AttentionBlock(hidden, config.heads) for _ in range(config.layers))
        self.norm, self.out = nn.LayerNorm(hidden), nn.Linear(hidden, 1)

    @torch.no_grad()
    def score(self, video: Tensor, text: Tensor, places: Tensor | None, grid: tuple[int, int, int]) -> Tensor:
        """Log-relevance of every token, higher for the more relevant; only differences mean something.

        Args:
            video: [N, C] visual tokens as they enter the layer, any floating-point dtype.
            text: [Q, C] the question's tokens likewise (before layer 0: their embeddings). Without any, or without a
                finite one, all scores are 0.
            places: [N, 3] (t, h, w) of each token in the grid; None for a whole video in row-major order.
            grid: Extent (T, H, W).

        Returns:
            [N] float32, finite: a token that holds NaN or Inf gets the lowest score there is.
        """
        self._check(video, text, places, grid)
        words = self._project(text, self.text_norm, self.text_in)
        words = words[words.isfinite().all(1)]
        if not len(words):
            return video.new_zeros(len(video), dtype=torch.float32)
        tokens = self._project(video, self.video_norm, self.video_in)
        finite = tokens.isfinite().all(1)
        tokens = torch.where(finite[:, None], tokens, 0)
        if self.config.kind == "match":
            step = max(1, _CHUNK_NUMBERS // len(words))
            scores = torch.cat([self._match(part[None], words[None], None)[0] for part in tokens.split(step)])
        else:
            if places is None:
                places = torch.cartesian_prod(*(torch.arange(extent, device=video.device) for extent in grid))
            scores = self._join(tokens[None], words[None], None, place_code(places, grid))[0]
        scores = scores.float()
        finite &= scores.isfinite()
        least = torch.where(finite, scores, torch.inf).amin()
        return torch.where(finite, scores, torch.where(least.isfinite(), least, 0))

    def forward(self, video: Tensor, text: Tensor, mask: Tensor, places: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Scores [B, N] of a batch, for training.

        Args:
            video: [B, N, C], finite; or [1, N, C], the same for all.
            text: [B, Q, C], padded.
            mask: [B, Q] bool, true where there is text.
            places: [N, 3], as of `score`.
            grid: As of `score`.
        """
        tokens, words = self.video_in(self.video_norm(video)), self.text_in(self.text_norm(text))
        if self.config.kind == "match":
            return self._match(tokens, words, mask)
        return self._join(tokens, words, mask, place_code(places, grid))

    def _check(self, video: Tensor, text: Tensor, places: Tensor | None, grid: tuple[int, int, int]) -> None:
        for name, rows in (("video", video), ("text", text)):
            if rows.ndim != 2 or rows.shape[1] != self.config.width or not rows.is_floating_point():
                shape = tuple(rows.shape)
                raise ValueError(f"{name}: {rows.dtype} {shape}; use floating point of [rows, {self.config.width}]")
        wanted = grid[0] * grid[1] * grid[2] if places is None else len(places)
        if wanted != len(video):
            raise ValueError(f"video: {len(video)} tokens for {wanted} places of grid={grid}; use one for each")

    def _project(self, rows: Tensor, norm: nn.LayerNorm, linear: nn.Linear) -> Tensor:
        """[R, D] of rows [R, C], a piece at a time."""
        step = max(1, _CHUNK_NUMBERS // self.config.width)
        dtype = linear.weight.dtype
        return torch.cat(
            [linear(norm(part.to(dtype))) for part in rows.split(step)] or [rows[:0, : self.config.hidden]]
        )

    def _match(self, tokens: Tensor, words: Tensor, mask: Tensor | None) -> Tensor:
        """[B, N] of projected tokens [B, N, D] and words [B, Q, D]."""
        cosine = F.normalize(tokens, dim=-1) @ F.normalize(words, dim=-1).transpose(1, 2)
        if mask is not None:
            cosine = cosine.masked_fill(~mask[:, None], -2)  # below every cosine
        return self.log_scale.exp().clamp(max=_LARGEST_SCALE) * cosine.amax(-1) + self.bias

    def _join(self, tokens: Tensor, words: Tensor, mask: Tensor | None, code: Tensor) -> Tensor:
        """[B, N] of projected tokens [B, N, D] at places with `code` [N, PLACE_CHANNELS], and words [B, Q, D]."""
        count, dtype = tokens.shape[1], tokens.dtype
        order = torch.arange(words.shape[1], device=words.device)
        tokens = tokens + self.place_in(code.to(dtype)) + self.kind_of_row[0]
        words = words + sinusoids(order, self.config.hidden // 2, _WORD_LONGEST).to(dtype) + self.kind_of_row[1]
        tokens = tokens.expand(len(words), -1, -1)
        rows = torch.cat([tokens, words], 1)
        if mask is not None:
            mask = torch.cat([mask.new_ones(len(mask), count), mask], 1)[:, None, None]
        for block in self.blocks[:-1]:
            rows = block(rows, rows, mask)
        tokens = self.blocks[-1](rows[:, :count], rows, mask)
        return self.out(self.norm(tokens)).squeeze(-1)
