"""Means of many tokens at a time, in a fixed order of summation and a fixed amount of memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from vllm_prune.methods._device import working_set
from vllm_prune.methods._finite import FiniteFeatures
from vllm_prune.methods._ragged import groups_below, items_of

_CHUNK_BYTES = 16 << 20  # float32 copies are made in pieces: freshly mapped memory costs more than the arithmetic


def average_runs(
    features: Tensor | FiniteFeatures, members: Tensor, lengths: Tensor, into: Tensor, slots: Tensor
) -> None:
    """Writes the means of M runs of `members`, `lengths` [M] of them at a time, to the rows `slots` [M] of `into`.

    features: [N, C]. Accumulated in float32 (float64: float64); rows are summed in their order.
    """
    at_once = max(1, working_set(_CHUNK_BYTES, into.device) // (4 * into.shape[1]))
    if len(members) <= at_once:
        into[slots] = _average(features, members, lengths).to(into.dtype)
        return
    ends = lengths.cumsum(0).tolist()  # one wait for a GPU
    for runs in groups_below(ends, at_once):
        part = members[items_of(ends, runs)]
        if len(part) <= at_once or _is_table(features):
            into[slots[runs]] = _average(features, part, lengths[runs]).to(into.dtype)
        else:
            into[slots[runs]] = _average_long(features, part.split(at_once), lengths[runs]).to(into.dtype)


def _is_table(features: Tensor | FiniteFeatures) -> bool:
    """Whether rows can be summed where they are."""
    return isinstance(features, Tensor) and features.itemsize >= 4 and features.is_contiguous()


def _average(features: Tensor | FiniteFeatures, members: Tensor, lengths: Tensor) -> Tensor:
    """[M, C] means, in the dtype that they are accumulated in."""
    if not _is_table(features):
        features, members = _widen(features, members), torch.arange(len(members), device=members.device)
    return embedding_bag(members, features, lengths.cumsum(0) - lengths, mode="mean")


def _average_long(features: Tensor | FiniteFeatures, parts: tuple[Tensor, ...], length: Tensor) -> Tensor:
    """[1, C]: of a single run, in parts; what is summed so far comes before the next rows."""
    total: Tensor | None = None
    for part in parts:
        rows = _widen(features, part)
        rows = rows if total is None else torch.cat((total, rows))
        index = torch.arange(len(rows), device=part.device)
        total = embedding_bag(index, rows, index[:1], mode="sum")
    assert total is not None
    return total / length[:, None]


def _widen(features: Tensor | FiniteFeatures, members: Tensor) -> Tensor:
    if isinstance(features, FiniteFeatures):
        return features.take(members)
    return features[members].to(torch.promote_types(features.dtype, torch.float32))
