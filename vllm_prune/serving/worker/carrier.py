"""What travels with the rows of a video through vLLM's encoder cache, as extra columns.

The cache holds floating point of the model's precision, and bf16 holds integers only up to 256. So every integer
travels as digits of base 256, which all of vLLM's precisions hold exactly.

A video of N1 tokens (rows that always stay included) of which K stay has K rows there. Each row holds ceil(N1 / K)
tokens, so that all N1 reach the language model's first layers, each with two integers: the slot of the medium whose
position it takes, and the group in which it competes. At its end a row has its own number, and that of the video's
`MediumInfo`:

    | features, slot, group | features, slot, group | ... | row, info |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from vllm_prune.serving.wire.digits import DIGITS, from_digits, to_digits

_TAG_COLUMNS = 2 * DIGITS
_END_COLUMNS = 2 * DIGITS


def pack(features: torch.Tensor, slots: torch.Tensor, groups: torch.Tensor, num_rows: int, info: int) -> torch.Tensor:
    """Rows for the encoder cache.

    Args:
        features: Tokens [N1, C].
        slots: Of each token in the medium's layout, [N1] int64.
        groups: Of each token, [N1] int64.
        num_rows: K, 1 <= K <= N1.
        info: Number of the video's `MediumInfo`.

    Returns:
        [K, ceil(N1 / K) * (C + 6) + 6] in the features' precision.
    """
    per_row, width = -(-len(features) // num_rows), features.shape[1]
    rows = features.new_empty(num_rows, per_row * (width + _TAG_COLUMNS) + _END_COLUMNS)
    number = torch.arange(num_rows, device=rows.device)
    rows[:, -_END_COLUMNS:] = to_digits(torch.stack((number, torch.full_like(number, info)), dim=1))
    tokens = _by_token(rows, width)
    # Straight to their places: a video's features may be much of what the device has left.
    whole, rest = divmod(len(features), per_row)
    tokens[whole:, rest:], tokens[whole + 1 :] = 0, 0
    for columns, values in (
        (slice(width), features),
        (slice(width, None), to_digits(torch.stack((slots, groups), dim=1))),
    ):
        tokens[:whole, :, columns] = values[: whole * per_row].unflatten(0, (whole, per_row))
        tokens[whole : whole + 1, :rest, columns] = values[whole * per_row :]
    return rows


class PartOfMedium(NamedTuple):
    """Which rows some consecutive rows are."""

    info: int
    """Number of the video's `MediumInfo`."""
    row: int
    """Number of the first of them among all rows of the video."""


def read_parts(
    media: list[torch.Tensor], positions: torch.Tensor, prompt: list[int] | torch.Tensor
) -> tuple[list[PartOfMedium], torch.Tensor, Sequence[int]]:
    """What each of `media` is, `positions` on the CPU, and the token ids of the prompt, if there are media.

    All in one copy, since a GPU has to be waited for.
    """
    if not media:
        return [], positions.cpu(), ()
    parts = [positions, *(rows[0, -_END_COLUMNS:] for rows in media)]
    if isinstance(prompt, torch.Tensor):
        parts.append(prompt)
    if any(part.is_cuda for part in parts):
        device = next(part.device for part in parts if part.is_cuda)
        found = torch.cat([part.flatten().to(device, torch.int64) for part in parts]).cpu()
        split = found.split([part.numel() for part in parts])
        parts = [own.view(part.shape) for own, part in zip(split, parts, strict=True)]
    ends = [from_digits(own[None])[0].tolist() for own in parts[1 : 1 + len(media)]]
    ids = parts[-1].tolist() if isinstance(prompt, torch.Tensor) else prompt
    return [PartOfMedium(info, row) for row, info in ends], parts[0], ids


def unpack(rows: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Splits rows into tokens.

    Args:
        rows: What `pack` made, or some consecutive rows of it, [n, ...].
        width: C.

    Returns:
        Features [m, C], slots [m] and groups [m] (int64) of m = n * ceil(N1 / K) tokens, padding at their end included.
    """
    tokens = _by_token(rows, width).flatten(0, 1)
    return tokens[:, :width], *_read_tags(tokens[:, width:])


def read_tags(rows: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots [m] and groups [m] as `unpack` has them; copies no features."""
    return _read_tags(_by_token(rows, width)[..., width:].flatten(0, 1))


def _read_tags(digits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    slots, groups = from_digits(digits).unbind(1)
    return slots, groups


def take(rows: torch.Tensor, width: int, tokens: torch.Tensor, columns: int | None = None) -> torch.Tensor:
    """Features [n, C] of the tokens with indices `tokens` [n], of rows as `unpack` has them; copies no others.

    `columns`: of the C, the first so many only.
    """
    packed = _by_token(rows, width)
    per_row = packed.shape[1]
    return packed[..., : width if columns is None else columns][tokens // per_row, tokens % per_row]


def _by_token(rows: torch.Tensor, width: int) -> torch.Tensor:
    """A view [n, tokens of a row, C + tags] of rows."""
    return rows[:, :-_END_COLUMNS].unflatten(1, (-1, width + _TAG_COLUMNS))
