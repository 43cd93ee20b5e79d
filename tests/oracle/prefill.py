"""Stages 2 and 3: the layers over a prompt, part by part, with dropped tokens removed from the cache."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .decoder import KVCache, run_layer
from .importance import importance, question_rows, top_k
from .learned import Learned
from .rows import Rows


@dataclass(frozen=True)
class Choice:
    """What is dropped of one medium."""

    targets: dict[int, int]
    """Decoder layer -> tokens left after it."""
    text: str = "max"
    """How importance goes over the question: "max", "mean" or "last"."""
    heads: str = "max"
    """And then over heads: "max" or "mean"."""
    learned: Learned | None = None
    """Who chooses in place of attention."""


@dataclass
class Pruning:
    """What is dropped where, and what was found out on the way."""

    choices: dict[int, Choice]
    """By index of the medium."""
    scores: dict[int, list[Tensor]] = field(default_factory=dict)
    """Index of each medium -> importance of the tokens still there, at each of its layers."""


def run_rows(
    model: PreTrainedModel,
    rows: Rows,
    cache: KVCache,
    pruning: Pruning | None = None,
    seen: list[Tensor] | None = None,
) -> tuple[Tensor, Rows]:
    """All layers over the next rows of a prompt; with `pruning` the media among them lose tokens on the way.

    `seen`: gets, for each layer, what entered it of the kept rows.

    Returns:
        The kept rows after the last layer [K, C], and the same rows as they came in.
    """
    hidden, start = rows.embeds, cache.length()
    for layer in range(len(model.model.language_model.layers)):
        if seen is not None:
            seen.append(hidden)
        hidden, weights = run_layer(model, layer, hidden, rows.positions, cache)
        if layer < len(rows.levels):
            hidden = hidden + rows.levels[layer]
        if pruning is not None and any(layer in choice.targets for choice in pruning.choices.values()):
            kept = choose_rows(weights, hidden, start, rows, pruning, layer)
            hidden, rows = hidden[kept], rows.select(kept)
            if seen is not None:
                seen[:] = [entered[kept] for entered in seen]
            for compacted in range(layer + 1):
                cache.compact(compacted, start, kept)
    return hidden, rows


def choose_rows(weights: Tensor, hidden: Tensor, start: int, rows: Rows, pruning: Pruning, layer: int) -> Tensor:
    """[R] bool: which rows stay after `layer`.

    Args:
        weights: Attention [heads, R, start + R].
        hidden: [R, C] after the layer.
        start: Rows in the cache before these.
        rows: Themselves, as they came in.
    """
    kept = torch.ones(len(rows), dtype=torch.bool)
    for index, choice in pruning.choices.items():
        if layer not in choice.targets:
            continue
        tokens = (rows.medium == index).nonzero().squeeze(1)
        if len(tokens) == 0:
            continue  # in another span
        if choice.learned is not None:
            chosen, scores = choice.learned.choose(layer, hidden, rows, index, choice.targets[layer])
        else:
            questions = question_rows(rows.medium, index)
            scores = importance(weights[:, questions][:, :, start + tokens], choice.text, choice.heads)
            chosen = top_k(scores, choice.targets[layer])
        pruning.scores.setdefault(index, []).append(scores)
        kept[tokens] = False
        kept[tokens[chosen]] = True
    return kept
