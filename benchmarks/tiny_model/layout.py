"""What stands before the questions in a packed sequence: the turn's opening, and the video step by step.

A sequence is ``head``, then for each temporal pair of frames ``lead``, the 16 tokens of the video and ``after``, then
``closing`` and the tail. Qwen2.5-VL has no text between the steps; Qwen3-VL puts a timestamp before each and marks the
vision's start and end around it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .config import TOKENS_PER_SECOND, Architecture
from .tokenizer import END_OF_TEXT, IM_START, SECONDS, VISION_END, VISION_START, encode, token_id

GRID = 4  # tokens a side
TOKENS_PER_PAIR = GRID * GRID
SHARED, PADDING = -2, -1  # groups of tokens: seen by every chain, or by none
TIMESTAMP_LENGTH = len(encode(f"<12.5{SECONDS}>"))


@dataclass(frozen=True)
class VideoLayout:
    """Token ids, positions and groups of what every chain of questions sees.

    ``head [H]``, ``lead [pairs, A]``, ``after [pairs, E]`` and ``closing [Z]`` are token ids; ``positions [3, S]`` are
    M-RoPE positions and ``groups [S]`` tell ``SHARED`` from ``PADDING``, over the whole of S tokens. Text behind it
    goes on at position ``next_position``.
    """

    head: Tensor
    lead: Tensor
    after: Tensor
    closing: Tensor
    positions: Tensor
    groups: Tensor
    next_position: int


def video_layout(architecture: Architecture, pairs: int, time_stride: float, vllm_rule: bool = True) -> VideoLayout:
    """The layout of a video of ``pairs`` temporal pairs, ``time_stride / TOKENS_PER_SECOND`` seconds apart."""
    if architecture == "qwen3_vl":
        return _with_timestamps(pairs, time_stride / TOKENS_PER_SECOND, outer_marks=vllm_rule)
    return _contiguous(pairs, time_stride, vllm_rule)


def sequential_layout(pairs: int, time_stride: float, *, timestamps: bool) -> VideoLayout:
    """Positions in one dimension, as LLaVA (tokens alone) and InternVL (text before each step) have them."""
    architecture: Architecture = "qwen3_vl" if timestamps else "qwen2_5_vl"
    return numbered(video_layout(architecture, pairs, time_stride))


def numbered(layout: VideoLayout) -> VideoLayout:
    """The same rows, each at the number of those before it; padding takes no number."""
    index = (layout.groups == SHARED).cumsum(0) - 1
    return replace(layout, positions=index.expand(3, -1), next_position=int(index[-1]) + 1)


def keep_cells(layout: VideoLayout, kept: Tensor, *, contiguous: bool) -> tuple[VideoLayout, Tensor]:
    """Drop all but ``kept [K]`` of the video's tokens; returns the layout of the rows that stay, and their indices.

    They keep their positions, or, if ``contiguous``, are numbered anew together with the text behind them.
    """
    pairs, before = layout.lead.shape
    after = layout.after.shape[1]
    stays = torch.ones(len(layout.groups), dtype=torch.bool)
    steps = stays[len(layout.head) : len(stays) - len(layout.closing)].view(pairs, before + TOKENS_PER_PAIR + after)
    cells = torch.zeros(pairs * TOKENS_PER_PAIR, dtype=torch.bool)
    cells[kept] = True
    steps[:, before : before + TOKENS_PER_PAIR] = cells.view(pairs, TOKENS_PER_PAIR)
    rows = stays.nonzero().flatten()
    left = replace(layout, positions=layout.positions[:, rows], groups=layout.groups[rows])
    return (numbered(left) if contiguous else left), rows


def _contiguous(pairs: int, time_stride: float, vllm_rule: bool) -> VideoLayout:
    """Qwen2.5-VL: ``time_stride`` temporal positions between temporal pairs, cut to integers as vLLM does.

    Text goes on at the largest position + 1 (vLLM, the original model) or, without ``vllm_rule``, at the video's
    start + the larger side of the grid (transformers 5.19).
    """
    head = torch.tensor(encode(f"{IM_START}user\n{VISION_START}"))
    start = len(head)
    times = (torch.arange(pairs) * time_stride).long()
    video = torch.stack(torch.meshgrid(times, torch.arange(GRID), torch.arange(GRID), indexing="ij"))
    video = video.reshape(3, -1) + start
    closes = int(video.max()) + 1 if vllm_rule else start + GRID
    positions = torch.cat([torch.arange(start).expand(3, -1), video, torch.full((3, 1), closes)], dim=1)
    nothing = torch.empty(pairs, 0, dtype=torch.long)
    closing = torch.tensor([token_id(VISION_END)])
    groups = torch.full((positions.shape[1],), SHARED)
    return VideoLayout(head, nothing, nothing, closing, positions, groups, closes + 1)


def _with_timestamps(pairs: int, seconds: float, outer_marks: bool) -> VideoLayout:
    """Qwen3-VL: every step is a grid of its own behind the middle of its time, to a tenth of a second.

    A timestamp below ten seconds has one token less; padding takes its place, so that steps are equally long. With
    ``outer_marks`` the template's own start and end stay around the whole, as of transformers 5.10 (vLLM follows the
    version it finds).
    """
    head = torch.tensor(encode(f"{IM_START}user\n{VISION_START}"))
    cells = torch.stack(
        torch.meshgrid(torch.zeros(1, dtype=torch.long), torch.arange(GRID), torch.arange(GRID), indexing="ij")
    )
    cells = cells.reshape(3, -1)
    outer = torch.tensor([SHARED if outer_marks else PADDING])
    position, leads = len(head) - (not outer_marks), []
    positions, groups = [torch.arange(len(head)).expand(3, -1)], [torch.full((len(head) - 1,), SHARED), outer]
    for pair in range(pairs):
        text = [*encode(f"<{(pair + 0.25) * seconds:.1f}{SECONDS}>"), token_id(VISION_START)]
        padding = TIMESTAMP_LENGTH + 1 - len(text)
        leads.append([token_id(END_OF_TEXT)] * padding + text)
        first = position + len(text)
        lead = torch.cat([torch.full((padding,), position), torch.arange(position, first)])
        closes = first + GRID
        positions += [lead.expand(3, -1), cells + first, torch.full((3, 1), closes)]
        groups += [torch.full((padding,), PADDING), torch.full((len(text) + TOKENS_PER_PAIR + 1,), SHARED)]
        position = closes + 1
    after = torch.full((pairs, 1), token_id(VISION_END))
    positions, groups = torch.cat([*positions, torch.full((3, 1), position)], dim=1), torch.cat([*groups, outer])
    closing = torch.tensor([token_id(VISION_END)])
    return VideoLayout(head, torch.tensor(leads), after, closing, positions, groups, position + outer_marks)
