"""Stage 1 on pixels: which cells are encoded, cell by cell, and a vision tower that masks instead of leaving out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_position_ids

from vllm_prune.budget import plan_counts
from vllm_prune.config import NO_METHOD, PruneConfig
from vllm_prune.methods import VideoTokens, compact
from vllm_prune.methods.merge_frames import merge_frames

from .prompt import Medium

GREY_LEVELS = 255 * np.array([0.26862954, 0.26130258, 0.27577711])
"""Per unit of a pixel value, as Qwen's processors normalise the three colours."""
BLACK = 255 * np.array([0.48145466, 0.4578275, 0.40821073])
"""Grey level of a pixel value of 0."""


def merged_cells(model: PreTrainedModel, medium: Medium, config: PruneConfig) -> VideoTokens:
    """What stage 1 on pixels leaves of a video."""
    assert config.stage1 is not None
    t, h, w = medium.grid_thw
    side = model.config.vision_config.spatial_merge_size
    encoded = changed_cells(medium, side, config)
    per_frame = encoded.sum(1).tolist()
    cells = torch.from_numpy(encoded.ravel().nonzero()[0])
    grid = (t, h // side, w // side)
    places = torch.stack(torch.unravel_index(cells, grid), dim=1)
    tokens = VideoTokens(encode_cells(model.model.visual, medium, cells), places, grid)
    count = plan_counts(config, encoded.size, per_frame).stage1
    return compact(tokens, merge_frames(tokens, count, config.stage1.cluster_ratio))


def changed_cells(medium: Medium, side: int, config: PruneConfig) -> np.ndarray:
    """[T, H*W] bool: the cells that differ from their last encoded version, by more than `tau` allows."""
    stage1 = config.stage1
    assert stage1 is not None
    limited = config.method == NO_METHOD and (config.keep_ratio or config.target_token_num)
    if stage1.still != "runs" or stage1.max_tokens or stage1.min_tokens or limited:
        raise NotImplementedError("the oracle has runs without limits only")
    frames = medium.grid_thw[0]
    pixels = medium.pixel_values.double().numpy().reshape(frames, -1, side**2, 3, 2, 14, 14)
    quarters = pixels.reshape(frames, -1, side**2, 3, 2, 2, 7, 2, 7).mean((4, 6, 8))
    levels = np.moveaxis(quarters * GREY_LEVELS[:, None, None] + BLACK[:, None, None], 3, 2)
    cells = levels.reshape(frames, levels.shape[1], 3, -1)
    encoded = np.ones(cells.shape[:2], dtype=bool)
    last, light = cells[0].copy(), np.ones((cells.shape[1], 3))
    for frame in range(1, frames):
        now = np.array([_middle(cells[frame, :, c].mean(1) / last[:, c].mean(1) * light[:, c]) for c in range(3)])
        for cell, version in enumerate(cells[frame]):
            gain = np.clip(now / light[cell], 1 / 1.4, 1.4)
            apart = math.sqrt(((version - last[cell] * gain[:, None]) ** 2).mean())
            encoded[frame, cell] = math.exp(-apart / 9) < stage1.tau
            if encoded[frame, cell]:
                last[cell], light[cell] = version, now
    return encoded


def new_cells(medium: Medium, side: int, within: int = 0) -> Tensor:
    """Indices of an image's cells that are not what the cell to the left shows, or along a vertical border that above.

    Pixel by pixel and cell by cell. Above 0, cells within so many grey levels join the one that stands in for what they
    are predicted by, the nearest first, with all that they stand for themselves.
    """
    _, h, w = medium.grid_thw
    h, w = h // side, w // side
    units = medium.pixel_values.double().numpy().reshape(h, w, side**2, 3, -1)
    levels = (units * GREY_LEVELS[:, None] + BLACK[:, None]).round().reshape(h * w, -1)
    shown = _predictors(levels, h, w)
    stand_in = list(range(h * w))
    for cell in range(1, h * w):
        if (levels[cell] == levels[shown[cell]]).all():
            stand_in[cell] = stand_in[shown[cell]]

    def apart(cells: list[int], other: int) -> float:
        return max(float(abs(levels[cell] - levels[other]).max()) for cell in cells)

    left = [cell for cell in range(1, h * w) if stand_in[cell] == cell]
    waiting = [(apart([cell], stand_in[shown[cell]]), cell) for cell in left]
    waiting = [step for step in waiting if step[0] <= within]
    while waiting:
        level, cell = min(waiting)
        waiting.remove((level, cell))
        group, new = [other for other in range(h * w) if stand_in[other] == cell], stand_in[shown[cell]]
        now = apart(group, new)
        if now <= level:
            for other in group:
                stand_in[other] = new
        elif now <= within:
            waiting.append((now, cell))
    return torch.tensor([cell for cell in range(h * w) if stand_in[cell] == cell])


def _predictors(levels: np.ndarray, h: int, w: int) -> list[int]:
    """The cell that predicts each of `levels` [h * w, pixels]; of the first, itself."""
    shown = []
    for row in range(h):
        for column in range(w):
            here = row * w + column
            left, above = here - 1, here - w
            if row == 0 or column == 0:
                shown.append(left if column else max(0, above))
            else:
                down, across = (abs(levels[above - 1] - levels[other]).max() for other in (left, above))
                shown.append(above if down < across else left)
    return shown


def encoded_image(model: PreTrainedModel, medium: Medium, within: int) -> VideoTokens:
    """The tokens of an image's new cells."""
    _, h, w = medium.grid_thw
    side = model.config.vision_config.spatial_merge_size
    cells, grid = new_cells(medium, side, within), (1, h // side, w // side)
    places = torch.stack(torch.unravel_index(cells, grid), dim=1)
    return VideoTokens(encode_cells(model.model.visual, medium, cells), places, grid)


def _middle(values: np.ndarray) -> float:
    """The median, of two the lower."""
    return float(np.sort(values)[(len(values) - 1) // 2])


def encode_cells(visual: Any, medium: Medium, cells: Tensor) -> Tensor:
    """[M, (1 + levels) * C]: features of `cells` [M], where nothing sees a patch of any other cell."""
    t, h, w = medium.grid_thw
    unit = visual.spatial_merge_size**2
    rows = (cells[:, None] * unit + torch.arange(unit)).flatten()
    place = get_vision_position_ids(torch.tensor([medium.grid_thw]), visual.spatial_merge_size)
    frame = torch.arange(t * h * w) // (h * w)
    same_frame = frame[rows][:, None] == frame[rows]
    whole, same_window = range(len(visual.blocks)), same_frame
    if hasattr(visual, "window_size"):
        whole = visual.fullatt_block_indexes
        window = torch.cat((frame[:, None], place // (visual.window_size // visual.patch_size)), dim=1)[rows]
        same_window = (window[:, None] == window).all(2)
    hidden = visual.patch_embed(medium.pixel_values[rows])
    if hasattr(visual, "pos_embed"):
        hidden = hidden + _learned_places(visual, medium.grid_thw)[rows]
    rotary = visual.rotary_pos_emb(hidden, place[rows])
    levels: list[Tensor] = []
    for index, block in enumerate(visual.blocks):
        seen = same_frame if index in whole else same_window
        hidden = hidden + _attend(block.attn, block.norm1(hidden), rotary, seen)
        hidden = hidden + block.mlp(block.norm2(hidden))
        if index in getattr(visual, "deepstack_visual_indexes", ()):
            levels.append(visual.deepstack_merger_list[len(levels)](hidden))
    return torch.cat([visual.merger(hidden), *levels], dim=1)


def _learned_places(visual: Any, grid_thw: tuple[int, int, int]) -> Tensor:
    """[patches, hidden]: the learned square of places, stretched over the grid of a frame."""
    t, h, w = grid_thw
    side, merge = visual.num_grid_per_side, visual.spatial_merge_size
    square = visual.pos_embed.weight.view(1, side, side, -1).permute(0, 3, 1, 2)
    frame = nn.functional.interpolate(square, (h, w), mode="bilinear", align_corners=True)[0]
    cells = frame.view(-1, h // merge, merge, w // merge, merge).permute(1, 3, 2, 4, 0)
    return cells.reshape(h * w, -1).repeat(t, 1)


def _attend(attention: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], seen: Tensor) -> Tensor:
    """Plain attention of all rows to those `seen` [n, n]."""
    query, key, value = attention.qkv(hidden).view(len(hidden), 3, attention.num_heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *rotary)
    scores = torch.einsum("qhd,khd->hqk", query, key) * attention.scaling
    weights = scores.masked_fill(~seen, -torch.inf).softmax(2)
    return attention.proj(torch.einsum("hqk,khd->qhd", weights, value).flatten(1))
