"""The oracle's stages 2 and 3 once more, by masking: nothing is removed, and Hugging Face's own layers do the work.

All rows, generated ones included, go through in one pass. Which tokens are dropped follows from the attention weights
of the pass itself, and changes what rows of later layers and later spans see: it is repeated until nothing changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

ALL = 1 << 30
"""As the last layer at which a row is seen: it is never dropped."""


@dataclass(frozen=True)
class MaskedVideo:
    """One video among R rows."""

    tokens: range
    """Its rows."""
    questions: list[int]
    """The rows that judge it."""
    span_stop: int
    """The first row that sees none of its dropped tokens in any layer."""
    targets: tuple[int, ...]
    """Tokens left after each pruning layer."""


@torch.no_grad()
def masked_run(
    model: PreTrainedModel,
    embeds: Tensor,
    positions: Tensor,
    videos: list[MaskedVideo],
    layers: tuple[int, ...],
) -> tuple[Tensor, list[list[int]]]:
    """Logits [R, vocab] of rows `embeds` [R, C] at `positions` [3, R], and the kept tokens of each video."""
    last_layer = torch.full((len(embeds),), ALL)  # at which other rows see a row
    while True:
        hidden, weights = _one_pass(model, embeds, positions, videos, last_layer)
        found = torch.full_like(last_layer, ALL)
        for video in videos:
            _drop(found, weights, video, layers)
        if torch.equal(found, last_layer):
            kept = [[row - video.tokens.start for row in video.tokens if found[row] == ALL] for video in videos]
            return model.lm_head(model.model.language_model.norm(hidden)), kept
        last_layer = found


def _one_pass(
    model: PreTrainedModel,
    embeds: Tensor,
    positions: Tensor,
    videos: list[MaskedVideo],
    last_layer: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """Rows [R, C] after the last layer, and every layer's attention weights [heads, R, R]."""
    decoder = model.model.language_model
    rotary = decoder.rotary_emb(embeds[None], positions[:, None])
    weights: list[Tensor] = []
    hooks = [
        block.self_attn.register_forward_hook(lambda module, inputs, output: weights.append(output[1][0]))
        for block in decoder.layers
    ]
    hidden = embeds[None]
    for layer, block in enumerate(decoder.layers):
        mask = torch.zeros(len(embeds), len(embeds)).masked_fill(~_visible(layer, videos, last_layer), -torch.inf)
        hidden = block(hidden, attention_mask=mask[None, None], position_embeddings=rotary)
    for hook in hooks:
        hook.remove()
    return hidden[0], weights


def _visible(layer: int, videos: list[MaskedVideo], last_layer: Tensor) -> Tensor:
    """[R, R] bool: which rows (first index) see which (second) at `layer`; every row sees itself."""
    rows = len(last_layer)
    visible = torch.ones(rows, rows, dtype=torch.bool).tril()
    visible[:, last_layer < layer] = False
    for video in videos:
        tokens = torch.tensor(video.tokens)
        visible[video.span_stop :, tokens[last_layer[tokens] < ALL]] = False
    return visible | torch.eye(rows, dtype=torch.bool)


def _drop(last_layer: Tensor, weights: list[Tensor], video: MaskedVideo, layers: tuple[int, ...]) -> None:
    """Sets the last layer of the tokens that a video loses."""
    left = list(video.tokens)
    for layer, target in zip(layers, video.targets, strict=True):
        scores = weights[layer][:, video.questions][:, :, left].amax(dim=(0, 1)).tolist()
        ranked = sorted(range(len(left)), key=lambda index: (-scores[index], index))
        for index in ranked[target:]:
            last_layer[left[index]] = layer
        left = [left[index] for index in sorted(ranked[:target])]
