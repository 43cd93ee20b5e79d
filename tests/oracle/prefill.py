"""Stages 2 and 3: the layers over a prompt, part by part, with dropped tokens removed from the cache."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .decoder import KVCache, run_layer
from .importance import importance, question_rows, top_k
from .rows import Rows


@dataclass
class Pruning:
    """What is dropped where, and what was found out on the way."""

    layers: tuple[int, ...]
    """After which decoder layers."""
    targets: dict[int, tuple[int, ...]]
    """Index of each video's medium -> tokens left after each of `layers`."""
    text: str = "max"
    """How importance goes over the question: "max", "mean" or "last"."""
    heads: str = "max"
    """And then over heads: "max" or "mean"."""
    scores: dict[int, list[Tensor]] = field(default_factory=dict)
    """Index of each video's medium -> importance of the tokens still there, at each of `layers`."""


def run_rows(model: PreTrainedModel, rows: Rows, cache: KVCache, pruning: Pruning | None = None) -> tuple[Tensor, Rows]:
    """All layers over the next rows of a prompt; with `pruning` the videos among them lose tokens on the way.

    Returns:
        The kept rows after the last layer [K, C], and the same rows as they came in.
    """
    hidden, start = rows.embeds, cache.length(0)
    for layer in range(len(model.model.language_model.layers)):
        hidden, weights = run_layer(model, layer, hidden, rows.positions, cache)
        if layer < len(rows.levels):
            hidden = hidden + rows.levels[layer]
        if pruning is not None and layer in pruning.layers:
            kept = choose_rows(weights, start, rows.medium, pruning, pruning.layers.index(layer))
            hidden, rows = hidden[kept], rows.select(kept)
            for compacted in range(layer + 1):
                cache.compact(compacted, start, kept)
    return hidden, rows


def choose_rows(weights: Tensor, start: int, medium: Tensor, pruning: Pruning, step: int) -> Tensor:
    """[R] bool: which rows stay after the pruning layer number `step`.

    Args:
        weights: Attention [heads, R, start + R].
        start: Rows in the cache before these.
        medium: [R], as in `Rows`.
    """
    kept = torch.ones(len(medium), dtype=torch.bool)
    for video in pruning.targets:
        tokens = (medium == video).nonzero().squeeze(1)
        if len(tokens) == 0:
            continue  # in another span
        questions = question_rows(medium, video)
        scores = importance(weights[:, questions][:, :, start + tokens], pruning.text, pruning.heads)
        pruning.scores.setdefault(video, []).append(scores)
        kept[tokens] = False
        kept[tokens[top_k(scores, pruning.targets[video][step])]] = True
    return kept
