"""How much attention a prompt saves by losing tokens at one decoder layer: the simple calculator."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_prune.estimate.flops import decoder_flops
from vllm_prune.estimate.text_dims import TextDims


@dataclass(frozen=True)
class AttentionSaving:
    """Fractions saved over all layers."""

    scores: float
    """Of queries times keys and weights times values, which grow with the square of the length."""
    projections: float
    """Of the projections to queries, keys, values and output (and of the MLP), which grow with the length."""
    attention: float
    """Of both together, for the model's width."""


def attention_saving(text: TextDims, before: int, after: int, layer: int) -> AttentionSaving:
    """What attention costs less when a prompt of `before` tokens goes on with `after` of them from layer `layer` on.

    The usual example: 676 tokens (100 of text, 576 of an image) go on as 376 at layer 10 of 32. Layers 0-9 cost what
    they did. The other 22 of 32 layers, 69%, save 1 - 376/676 = 44% of the projections and 1 - (376/676)^2 = 69% of the
    scores: 30.5% and 47.5% over all layers. "About 38%" is between the two. It is what attention as a whole saves where
    scores and projections weigh about the same; with hidden size 4096 (LLaVA-1.5-7B) projections are 92% of attention
    at this length, and it saves 32%; the longer the prompt, the closer to 47.5%. What does give 38.2% is 22/32 x
    376/676: the projections that layers 10-31 still compute, as a share of all before, which is a cost and no saving.

    >>> llava = TextDims(
    ...     hidden=4096, layers=32, heads=32, kv_heads=32, head_dim=128, mlp=11008, vocabulary=32000, tied=False
    ... )
    >>> saving = attention_saving(llava, 676, 376, layer=10)
    >>> [round(100 * part, 1) for part in (saving.projections, saving.attention, saving.scores)]
    [30.5, 31.8, 47.5]

    Args:
        text: The model.
        before: Tokens of the prompt.
        after: Tokens that are left of them.
        layer: The first layer that sees only these.
    """
    full, pruned = [before] * text.layers, [before] * layer + [after] * (text.layers - layer)
    width = 2 * text.hidden * text.head_dim * (2 * text.heads + 2 * text.kv_heads)
    scores = [decoder_flops(text, rows).attention for rows in (full, pruned)]
    projections = [width * sum(rows) for rows in (full, pruned)]
    attention = [a + b for a, b in zip(scores, projections, strict=True)]
    return AttentionSaving(*(1 - less / more for more, less in (scores, projections, attention)))
