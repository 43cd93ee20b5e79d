"""A prompt as rows of the language model: one for each text token and for each of a medium's N1 tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vllm_prune.methods import VideoTokens

from .positions import medium_extent, step_start, temporal_factor, token_offsets
from .prompt import Medium, Prompt
from .squares import has_squares, slots_of

TEXT, PINNED = -1, -2
"""In `Rows.medium`: not of any medium; or of the text that a model puts between the steps of one."""


@dataclass(frozen=True)
class Rows:
    """R rows in the order of the prompt.

    embeds: [R, C].
    positions: [3, R] int64.
    medium: [R] int64, index of the row's medium in the prompt, or TEXT, or PINNED.
    token: [R] int64, index of the row among its medium's N1 tokens; the token id of text.
    levels: [levels, R, C], what is added to the rows after each of the first layers.
    """

    embeds: Tensor
    positions: Tensor
    medium: Tensor
    token: Tensor
    levels: Tensor

    def __len__(self) -> int:
        return len(self.embeds)

    def select(self, index: Tensor | slice) -> Rows:
        """The rows at `index`."""
        parts = (self.embeds[index], self.positions[:, index], self.medium[index], self.token[index])
        return Rows(*parts, self.levels[:, index])


def join(parts: list[Rows]) -> Rows:
    """Rows one after the other."""
    return Rows(
        torch.cat([part.embeds for part in parts]),
        torch.cat([part.positions for part in parts], dim=1),
        torch.cat([part.medium for part in parts]),
        torch.cat([part.token for part in parts]),
        torch.cat([part.levels for part in parts], dim=1),
    )


@dataclass(frozen=True)
class Layout:
    """A whole prompt as rows."""

    rows: Rows
    first_row: list[int]
    """The first row of each of the prompt's ids, and the number of rows at the end."""
    next_position: int
    """Of the first decoded token."""
    places: list[int]
    """Which of the prompt's ids are the media's placeholders."""


def lay_out(
    model: PreTrainedModel,
    prompt: Prompt,
    tokens: list[VideoTokens],
    renumbered: Collection[int] = (),
    whole: Collection[int] = (),
) -> Layout:
    """The rows of a prompt whose media enter with `tokens`; those of the media `renumbered` are numbered anew.

    Text around the squares of a medium that stays `whole` is text like any other, as are the marks around Qwen's.
    """
    placeholders = (model.config.image_token_id, getattr(model.config, "video_token_id", None))
    places = prompt.places
    if places is None:
        places = [index for index, token_id in enumerate(prompt.ids) if token_id in placeholders]
    tokens_per_second = getattr(model.config.vision_config, "tokens_per_second", None)
    parts: list[Rows] = []
    first_row = [0]
    position = medium = 0
    for index, token_id in enumerate(prompt.ids):
        if index in places:
            item = _medium_of(model, prompt, medium, token_id)
            t_factor = temporal_factor(item, tokens_per_second)
            if has_squares(model):
                rows, extent = _slots(model, item, tokens[medium], medium, position, medium in whole)
                if medium in renumbered:
                    extent = len(rows)
                    rows = dataclasses.replace(rows, positions=(torch.arange(extent) + position).expand(3, -1))
                parts.append(rows)
                position += extent
            elif item.text:
                parts.append(_steps(model, item, tokens[medium], medium, position))
                position += step_start(item.text, tokens[medium].grid_thw, len(item.text))
                position -= max(tokens[medium].grid_thw[1:])
            else:
                parts.append(_medium_rows(model, tokens[medium], medium, position, t_factor))
                position += medium_extent(tokens[medium].grid_thw, t_factor)
            medium += 1
        else:
            parts.append(text_row(model, token_id, position))
            position += 1
        first_row.append(first_row[-1] + len(parts[-1]))
    if medium != len(prompt.media):
        raise ValueError(f"{medium} placeholders for {len(prompt.media)} media")
    return Layout(join(parts), first_row, position, places)


def _medium_of(model: PreTrainedModel, prompt: Prompt, index: int, token_id: int) -> Medium:
    kind = "video" if token_id == getattr(model.config, "video_token_id", None) else "image"
    if index >= len(prompt.media) or prompt.media[index].kind != kind:
        raise ValueError(f"placeholder {index} is of kind {kind!r}, and media[{index}] is not")
    return prompt.media[index]


def _medium_rows(model: PreTrainedModel, tokens: VideoTokens, index: int, start: int, t_factor: float) -> Rows:
    number = torch.arange(tokens.num_tokens)
    embeds, *levels = tokens.features.split(model.config.text_config.hidden_size, dim=1)
    positions = token_offsets(tokens.grid, t_factor) + start
    added = torch.stack(levels) if levels else embeds.new_empty(0, *embeds.shape)
    return Rows(embeds, positions, torch.full_like(number, index), number, added)


def _slots(
    model: PreTrainedModel, medium: Medium, tokens: VideoTokens, index: int, start: int, whole: bool
) -> tuple[Rows, int]:
    """A medium whose slots are one position apart, and how many it has; newlines and text stay between the tokens."""
    slots, places, others, extent = slots_of(model, medium, tokens)
    cells = _medium_rows(model, tokens, index, 0, 1.0)
    cells = dataclasses.replace(cells, positions=(slots + start).expand(3, -1))
    mark = ids = torch.full_like(places, PINNED)
    if whole and medium.text:
        mark, ids = torch.full_like(places, TEXT), torch.tensor([token for run in medium.text for token in run])
    pinned = Rows(others, (places + start).expand(3, -1), mark, ids, others.new_empty(0, *others.shape))
    return join([cells, pinned]).select(torch.cat((slots, places)).argsort()), extent


def _steps(model: PreTrainedModel, medium: Medium, tokens: VideoTokens, index: int, start: int) -> Rows:
    """A medium with text before each step and after the last one; each step has a grid of its own."""
    parts: list[Rows] = []
    cells = _medium_rows(model, tokens, index, 0, 1.0)
    for step, run in enumerate(medium.text):
        position = start + step_start(medium.text, tokens.grid_thw, step)
        for offset, token_id in enumerate(run):
            row = text_row(model, token_id, position + offset)
            parts.append(dataclasses.replace(row, medium=torch.tensor([PINNED])))
        here = cells.select((tokens.grid[:, 0] == step).nonzero().squeeze(1))
        own = torch.stack((torch.zeros(len(here), dtype=torch.int64), here.positions[1], here.positions[2]))
        parts.append(dataclasses.replace(here, positions=own + position + len(run)))
    return join(parts)


def text_row(model: PreTrainedModel, token_id: int, position: int) -> Rows:
    """The row of one text token."""
    embeds = model.get_input_embeddings()(torch.tensor([token_id]))
    levels = torch.zeros(num_levels(model), 1, embeds.shape[1])
    return Rows(embeds, torch.full((3, 1), position), torch.tensor([TEXT]), torch.tensor([token_id]), levels)


def num_levels(model: PreTrainedModel) -> int:
    """After how many of the first layers the encoder's features are added once more."""
    return len(getattr(model.config.vision_config, "deepstack_visual_indexes", ()))
