"""Floating-point operations of a prefill, counted as PyTorch's FLOP counter counts them.

A product of [m, k] and [k, n] is 2*m*k*n operations; of attention the products of queries with keys and of weights with
values count, over the full rectangle (a causal mask, of which good kernels save about half, is not subtracted). Norms,
activations, softmax, rotary embedding and the clustering of stage 1 are left out: together well below 1%.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_prune.estimate.dims import VisionDims
from vllm_prune.estimate.squares import SquareDims
from vllm_prune.estimate.text_dims import TextDims


@dataclass(frozen=True)
class Flops:
    """`linear`: with weights. `attention`: with keys and values."""

    linear: int = 0
    attention: int = 0

    @property
    def total(self) -> int:
        """Both."""
        return self.linear + self.attention

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.linear + other.linear, self.attention + other.attention)

    def to_dict(self) -> dict[str, int]:
        """For JSON."""
        return {"linear": self.linear, "attention": self.attention, "total": self.total}


def encoder_flops(vision: VisionDims, grid: tuple[int, int, int]) -> Flops:
    """The vision encoder over a video of `grid` (t, h, w) tokens."""
    steps, rows, columns = grid
    if vision.squares is not None:
        return _square_flops(vision, vision.squares, steps)
    tokens = steps * rows * columns
    patches = tokens * vision.merge**2
    linear = 2 * patches * (vision.patch_embed_parameters + vision.depth * vision.block_parameters)
    linear += 2 * tokens * vision.merger_parameters
    full = sum(block in vision.full_attention for block in range(vision.depth))
    pairs = full * (rows * columns) ** 2 + (vision.depth - full) * _window_pairs(vision, rows, columns)
    return Flops(linear, 4 * vision.hidden * steps * pairs * vision.merge**4)


def _square_flops(vision: VisionDims, squares: SquareDims, count: int) -> Flops:
    """The encoder over `count` squares: each attends to itself."""
    linear = squares.patches**2 * vision.patch_embed_parameters
    linear += vision.depth * squares.sequence * vision.block_parameters
    linear += squares.projected * squares.projector_parameters
    return Flops(2 * count * linear, 4 * vision.hidden * count * vision.depth * squares.sequence**2)


def _window_pairs(vision: VisionDims, rows: int, columns: int) -> int:
    """Pairs of tokens in the same window; windows at the lower and right edge may be smaller."""
    side = vision.window_pixels // vision.token_pixels
    return _squares(rows, side) * _squares(columns, side)


def _squares(length: int, side: int) -> int:
    """Sum of squared lengths of the pieces of `side` that `length` is cut into.

    >>> _squares(10, 4)
    36
    """
    whole, rest = divmod(length, side)
    return whole * side**2 + rest**2


def layer_flops(text: TextDims, rows: int) -> Flops:
    """One decoder layer, on average over both kinds, over `rows` rows that attend to each other."""
    attention = text.keyed_layers * 4 * text.heads * text.head_dim * rows**2
    if text.linear:
        attention += text.linear.layers * text.linear.row_flops * rows
    return Flops(2 * rows * text.layer_parameters, attention // text.layers)


def decoder_flops(text: TextDims, rows: Sequence[int]) -> Flops:
    """Decoder layers with `rows[i]` rows in the i-th."""
    return sum((layer_flops(text, count) for count in rows), Flops())


def head_flops(text: TextDims) -> Flops:
    """The output head over the last row."""
    return Flops(2 * text.hidden * text.vocabulary, 0)


def importance_flops(text: TextDims, question: int, rows: int, tokens: int) -> Flops:
    """The scores by which the question chooses at one layer.

    Products of the queries of `question` rows with the keys of all `rows` (for the softmax) and again with those of the
    `tokens` asked about.
    """
    return Flops(0, 2 * text.heads * text.head_dim * question * (rows + tokens))
